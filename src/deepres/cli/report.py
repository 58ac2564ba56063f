"""`deepres report`: tables, figures and a web page from finished runs."""

from pathlib import Path

import click

from deepres.cli.options import DATA_DIR, PATH, chosen_release
from deepres.errors import extra_needed
from deepres.streams import err, out, say


@click.command()
@click.argument("dirs", nargs=-1, required=True, metavar="DIR...", type=PATH)
@click.option("--out", "out_dir", type=PATH, required=True, help="Folder for the report.")
@click.option("--unfinished", is_flag=True, help="Show the curves so far of runs that are not finished too.")
@DATA_DIR
def report(dirs: tuple[Path, ...], out_dir: Path, unfinished: bool, data_dir: Path | None) -> None:
    """Write tables, figures and report.html from the finished runs in DIR...

    A DIR is a run directory or holds some at any depth. Table 6 is written as .md, .csv and .tex; figure 6, error
    against depth and compute, confusion matrices and the most confident errors as .png, .svg and .pdf; figure 7 where
    responses.json of `deepres responses` lies in a DIR or in OUT. Needs neither weights nor a GPU.
    """
    with extra_needed("deepres report", "report"):
        from deepres.report.report import write_report

    with err.status("") as status:
        written, remarks = write_report(
            dirs, out_dir, data_dir, unfinished=unfinished, doing=status.update, release=chosen_release()
        )
    for remark in remarks:
        say(f"deepres: not shown: {remark}")
    out.print(f"{len(written)} files written to {out_dir}; read {written[-1]}", markup=False, soft_wrap=True)
