"""Stand-ins for the C++ compiler."""


def make_compiler(path, monkeypatch, body, shell="/bin/sh", version="1.0"):
    """A compiler that tells its version and then does what the shell commands of `body` say."""
    path.write_text(f'#!{shell}\n[ "$1" = --version ] && echo "{version}" && exit 0\n{body}\n')
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
