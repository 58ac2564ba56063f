"""Write docs/architecture.md from the package's imports and docstrings; `--check` only tells whether it is up to date.

A room is a folder of src/deepres, or a module beside them. A room imports only rooms that stand below it in `FLOORS`.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "deepres"
PAGE = ROOT / "docs" / "architecture.md"

# From the roof to the ground. Rooms of one floor do not import each other.
FLOORS = (
    ("__init__", "__main__"),
    ("cli", "notebook"),
    ("grid",),
    ("export", "integrations", "report"),
    ("zoo",),
    ("training",),
    ("backends", "runs", "weights"),
    ("data",),
    ("models", "recipes"),
    ("files", "inputs", "objects"),
    ("_version", "errors", "formatting", "seeding", "streams"),
)

HEADING = """# Architecture

The rooms of the package and what each is for. A room imports only from rooms below it. Tables and picture are written
by `python tools/architecture.py` from the docstrings and imports of `src/deepres`; a test keeps them true.

A training takes this way: `recipes` says how, `data` gives mini-batches that depend on nothing but the seed and the
step, `models` builds the net, `backends` computes its gradients, `training` takes the steps and records them, `runs`
is what lies on disk afterwards, and `report` draws it; `cli` and `notebook` show it. Trained nets go another way:
`weights` is a net with its normalization, `zoo` publishes such nets, `export` and `integrations` take them elsewhere.
"""


def room_of(path: Path) -> str:
    """Return the room that a module of the package belongs to."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imported_rooms(path: Path) -> set[str]:
    """Return the rooms that a module imports from, wherever in the module that is."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            imported = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        else:
            continue
        for package, *parts in (name.split(".") for name in imported):
            if (
                package == "deepres"
                and parts
                and ((SOURCE / parts[0]).is_dir() or (SOURCE / f"{parts[0]}.py").is_file())
            ):
                rooms.add(parts[0])
    return rooms


def read_arrows() -> dict[tuple[str, str], list[str]]:
    """Return, for each pair of rooms of which the first imports from the second, the modules that do so."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for room in sorted(imported_rooms(path) - {room_of(path)}):
            arrows.setdefault((room_of(path), room), []).append(str(path.relative_to(SOURCE)))
    return arrows


def floor_of(room: str) -> int:
    """Return the floor of a room, counted from the roof.

    Raises:
        StopIteration: the room stands on no floor.
    """
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def arrows_that_do_not_go_down() -> list[str]:
    """Return a line for each import from a room of the same floor or a higher one."""
    return [
        f"{importer} imports {imported}: {', '.join(modules)}"
        for (importer, imported), modules in read_arrows().items()
        if floor_of(importer) >= floor_of(imported)
    ]


def module_imports() -> dict[str, set[str]]:
    """Return, for each module of the package, the modules that it imports when it is itself imported."""
    names = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in SOURCE.rglob("*.py")}
    imports: dict[str, set[str]] = {}
    for name, path in names.items():
        found = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deepres"):
                package = (node.module or "").partition(".")[2]
                found |= {f"{package}.{alias.name}".lstrip(".") for alias in node.names} | {package}
            elif isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("deepres.")}
        imports[name] = found & names.keys() - {name}
    return imports


def circular_imports() -> list[str]:
    """Return the modules that import each other in a circle, whichever of them is imported first."""
    left = module_imports()
    while free := {name for name, imports in left.items() if not imports & left.keys()}:
        left = {name: imports for name, imports in left.items() if name not in free}
    return sorted(name for name in left if any(name in left[other] for other in left))


def first_sentence(path: Path) -> str:
    """Return the first paragraph of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def lines_of(room: str) -> int:
    """Return the lines of a room's sources."""
    folder = SOURCE / room
    paths = [SOURCE / f"{room}.py"] if not folder.is_dir() else [*folder.rglob("*.py"), *folder.rglob("*.[ch]*")]
    return sum(len(path.read_text().splitlines()) for path in paths if path.suffix in (".py", ".cpp", ".h"))


def page() -> str:
    """Return the content of docs/architecture.md."""
    rows = ["| room | lines | what it is for |", "| --- | ---: | --- |"]
    for rooms in FLOORS:
        for room in rooms:
            path = SOURCE / room / "__init__.py" if (SOURCE / room).is_dir() else SOURCE / f"{room}.py"
            rows.append(f"| `{room}` | {lines_of(room):,} | {first_sentence(path)} |")
    ground = {*FLOORS[-1], *FLOORS[-2], *FLOORS[0]}
    edges = [f"    {a} --> {b}" for a, b in read_arrows() if not {a, b} & ground]
    picture = ["```mermaid", "graph TD", *edges, "```"]
    parts = [HEADING, "## Rooms, from the roof to the ground\n", "\n".join(rows), ""]
    parts += [
        "## Imports between the rooms\n",
        "The ground, which every room may use, is left out.\n",
        "\n".join(picture),
    ]
    modules = ["## Modules\n"]
    for rooms in FLOORS:
        for room in (room for room in rooms if (SOURCE / room).is_dir()):
            modules.append(f"### {room}\n\n| module | what it does |\n| --- | --- |")
            for path in sorted((SOURCE / room).rglob("*.py")):
                if path.name != "__init__.py":
                    name = path.relative_to(SOURCE / room).with_suffix("")
                    modules.append(f"| `{name}` | {first_sentence(path)} |")
            modules.append("")
    return "\n".join([*parts, "", *modules]).rstrip() + "\n"


def main() -> None:
    """Write the page, or tell that it is not up to date."""
    if PAGE.exists() and PAGE.read_text() == page():
        return
    if "--check" in sys.argv[1:]:
        sys.exit("docs/architecture.md is not up to date: run `make readme`")
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
