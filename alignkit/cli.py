"""The `alignkit` command."""

import argparse
import sys
from pathlib import Path

COMMANDS = {
    "tour": "fetch, run the first notebook, show its claim: start here",
    "list": "the papers whose claims can be re-run",
    "reproduce": "re-run a paper's claims: alignkit reproduce SLUG",
    "register": "write a paper's design down before its run: alignkit register SLUG",
    "publish": "take a registered run's results into the package: alignkit publish SLUG",
    "compare": "the objectives of part 1 on the same pairs and budget: alignkit compare",
    "train": "train one arm of a claim, on one GPU or many: alignkit train SLUG",
    "scoreboard": "the published verdicts as a table",
    "bench": "time and memory beside the field's libraries: alignkit bench loss",
    "features": "fill the feature cache for the default corpora",
    "new": "the files of a new paper, which pass the shared tests: alignkit new SLUG",
    "notebook": "build and execute a notebook from its script: alignkit notebook SLUG",
    "doctor": "what is installed, cached and missing, and how to mend it",
    "site": "build the course's web site: alignkit site DIR",
    "student": "write the student version of the notebooks: alignkit student DIR",
    "grade": "the marks of students' notebooks: alignkit grade NOTEBOOK or FOLDER",
    "map": "the notebooks in the order of reading, and what each one needs",
    "which": "which method when, with its published verdicts",
}

# What `train` may change of a claim's budget.
BUDGET = {
    "steps": (int, "of each stage that names none"),
    "batch_size": (int, "rows of all processes together"),
    "chunk": (int, "rows encoded at a time, with the exact gradient of the whole batch"),
    "lr": (float, "the highest learning rate"),
    "save_every": (int, "steps between checkpoints; default: a twentieth, 10 at least"),
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; 0 if it went well, 1 with one clear line if not."""
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show becomes a ?
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    args = _parser().parse_args(argv)
    try:
        return globals()[f"_{args.command}"](args) or 0
    except BrokenPipeError:  # `alignkit list | head`
        return 0
    except (ImportError, ValueError, OSError, RuntimeError) as error:
        from alignkit.versions import explain

        words = explain(error) or "; ".join([str(error), *getattr(error, "__notes__", ())])
        print(f"alignkit {args.command}: {words}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="alignkit", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {name: commands.add_parser(name, help=text, description=text)
            for name, text in COMMANDS.items()}
    for name in ("reproduce", "register", "publish", "train", "new", "notebook"):
        command = made[name]
        command.add_argument("slug", help="a paper, e.g. from `alignkit list`")
    for command in (made["reproduce"], made["compare"], made["train"]):
        command.add_argument("--scale", default="small",
                             choices=("tiny", "small", "gpu", "full"))
        command.add_argument("--pairs", type=Path,
                             help="your own: a CSV with columns image,caption, a folder of "
                                  "pictures and .txt files, or a folder of Pairs.save")
    _train_arguments(made["train"])
    for command in (made["reproduce"], made["compare"]):
        command.add_argument("--seeds", type=int, default=8, help="paired seeds, 5 at least")
        command.add_argument("--out", type=Path, default=Path("alignkit-results"),
                             help="folder for the result files")
        command.add_argument("--first", type=int, metavar="SEED",
                             help="the first of the seeds (default: the paper's)")
    for command in (made["reproduce"], made["compare"], made["register"]):
        command.add_argument("--jobs", type=int, metavar="N",
                             help="processes; default: one a core, 4 at most")
    made["register"].add_argument("--reason", default="", help="why the design has changed")
    made["register"].add_argument("--edge", default="", help="why the grid ends where it does")
    made["student"].add_argument("--otter", action="store_true",
                                 help="for otter-grader: a folder a notebook, with tests")
    made["publish"].add_argument("--from", dest="out", type=Path, metavar="FOLDER",
                                 default=Path("alignkit-results"))
    made["publish"].add_argument("--restamp", action="store_true",
                                 help="no new results: the code has changed and the figures "
                                      "have not; a published seed is run again first")
    for command in (made["student"], made["site"]):
        command.add_argument("folder", type=Path)
    _grade_arguments(made["grade"])
    measured = made["bench"]
    measured.add_argument("contests", nargs="*", metavar="CONTEST",
                          help="default: all; an unknown one is told which there are")
    measured.add_argument("--rounds", type=int, default=7)
    measured.add_argument("--size", type=int, help="default: the one that is published")
    measured.add_argument("--threads", type=int, default=2)
    measured.add_argument("--limit", type=float, metavar="SECONDS",
                          help="of a contestant's process; one that takes longer ends its "
                               "contest (default: none)")
    measured.add_argument("--out", type=Path, default=Path("alignkit-bench.json"))
    measured.add_argument("--readme", type=Path, help="put the table between its markers")
    _page_arguments(made)
    return parser


def _grade_arguments(grade: argparse.ArgumentParser) -> None:
    grade.description += (
        ". Each answer runs on fresh random cases in a process of its own, with what it "
        "uses of the cells above it; it may use Python, torch, numpy, scipy, and of "
        "alignkit only `unit` and what its exercise allows. There is a time limit, but "
        "no sandbox: students' code has your rights; use a container for notebooks that "
        "you do not trust. The exit code is 0 if every exercise is right, else 1.")
    grade.add_argument("path", type=Path, metavar="NOTEBOOK",
                       help="or a folder, for a table of all that are in it")
    grade.add_argument("--exercises", metavar="SLUG",
                       help="whose exercises they are, where neither the file's name nor "
                            "the title card tells")
    grade.add_argument("--seconds", type=float, default=20, metavar="N",
                       help="limit for an exercise (default: 20)")
    grade.add_argument("--seed", type=int, metavar="N",
                       help="of the cases, to get the marks of an earlier run again "
                            "(default: a new one, printed below the marks)")
    grade.add_argument("--json", type=Path, metavar="FILE",
                       help="write the marks there too")
    grade.add_argument("--csv", type=Path, metavar="FILE",
                       help="and there, a line a notebook, for a course's system")
    grade.add_argument("--feedback", type=Path, metavar="FOLDER",
                       help="write a text for each student there")
    grade.add_argument("--partial", action="store_true",
                       help="a wrong answer gets the part of its cases that is right")


def _page_arguments(made: dict[str, argparse.ArgumentParser]) -> None:
    made["new"].add_argument("--title", required=True, help="as it stands on the pages")
    made["new"].add_argument("--part", help="its folder, where the curriculum does not say")
    made["notebook"].add_argument("--keep", choices=("script", "notebook"), help="whose edits")
    made["notebook"].add_argument("--run", action="store_true",
                                  help="execute it, even if only texts have changed")
    for name, page in (("map", "README.md"), ("which", "README.md"),
                       ("scoreboard", "SCOREBOARD.md and the README")):
        made[name].add_argument("--write", action="store_true",
                                help=f"bring notebooks/{page} up to date")


def _train_arguments(train: argparse.ArgumentParser) -> None:
    train.description = (
        "Train one arm of a paper's claim and measure it on the test rows. The same command "
        "goes on where it stopped. Many GPUs or machines: accelerate launch -m alignkit "
        "train SLUG --out FOLDER, with --use_fsdp --fsdp_version 2 for shards.")
    train.add_argument("--claim", metavar="NAME", help="default: the first")
    train.add_argument("--arm", metavar="NAME", help="default: the claim's method")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--out", type=Path, required=True, metavar="FOLDER",
                       help="for the weights, train.json and checkpoints; several machines "
                            "must all see it")
    for name, (kind, text) in BUDGET.items():
        train.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=text)
    train.add_argument("--workers", type=int, metavar="N",
                       help="processes that make batches ahead (of each process); default: "
                            "on a GPU as many as are of use, on a CPU none")
    train.add_argument("--precision", choices=("no", "bf16", "fp16"),
                       help="this one counts, not accelerate's --mixed_precision")


def _tour(args) -> None:
    from alignkit.course.tour import tour

    tour()


def _list(args) -> None:
    from alignkit.claims import SCALES, paper, slugs, stored

    for slug in slugs():
        verdicts = ", ".join(f"{r.claim}: {r.verdict}" for r in stored(slug)) or "not run"
        pairs = "takes --pairs" if paper(slug).NEEDS else "no pairs of your own"
        print(f"{slug:16} {pairs}; scales {', '.join(SCALES)}; {verdicts}")


def _reproduce(args) -> None:
    from alignkit.claims.command import reproduce

    reproduce(args.slug, args.scale, args.seeds, first=args.first, pairs=args.pairs,
              out=args.out, jobs=args.jobs)


def _register(args) -> None:
    from alignkit.claims.command import write_down

    path = write_down(args.slug, args.reason, args.edge, args.jobs)
    print(f"written to {path}: commit it, then alignkit reproduce {args.slug}")


def _publish(args) -> None:
    from alignkit.claims.publish import publish, restamp
    from alignkit.course.guide import write, write_verdicts

    paths = restamp(args.slug) if args.restamp else publish(args.slug, args.out)
    pages = [] if args.restamp else [*write_verdicts(), write()]
    print(*(f"written to {path}" for path in [*paths, *pages]), sep="\n")


def _compare(args) -> None:
    """`reproduce` of the claims file that gives a table."""
    from alignkit.claims import paper, slugs

    (args.slug,) = (slug for slug in slugs() if hasattr(paper(slug), "table"))
    _reproduce(args)


def _train(args) -> None:
    from accelerate import PartialState

    from alignkit.claims.train import train

    changes = {name: value for name in (*BUDGET, "precision")
               if (value := getattr(args, name)) is not None}
    train(args.slug, args.out, args.scale, args.claim, args.arm, args.pairs, args.seed,
          changes, args.workers)
    PartialState().destroy_process_group()


def _features(args) -> None:
    from alignkit.claims.command import fill_features

    fill_features()


def _doctor(args) -> int:
    from alignkit.course.doctor import doctor

    return doctor()


def _student(args) -> None:
    from alignkit.course.guide import students

    print(*students(args.folder, otter=args.otter), sep="\n")


def _site(args) -> None:
    from alignkit.course.site import site

    print(f"written to {site(args.folder)}")


def _new(args) -> None:
    from alignkit.course.scaffold import new

    new(args.slug, args.title, args.part)


def _notebook(args) -> int:
    from alignkit.course.authoring import notebook

    return int(bool(notebook(args.slug, args.keep, run=args.run)))


def _grade(args) -> int:
    from alignkit.course.gradebook import table

    return int(not table(args.path, args.exercises, args.seconds, args.seed, args.json,
                         args.csv, args.feedback, args.partial))


def _bench(args) -> None:
    from alignkit import bench

    found = bench.bench_to(args.out, args.contests or bench.usual(), rounds=args.rounds,
                           size=args.size, threads=args.threads, limit=args.limit)
    if args.readme:
        bench.write_readme(found, args.readme)
    print(f"written to {args.out}")


def _map(args) -> None:
    from alignkit.course import guide

    text = {"map": guide.map_text, "which": guide.which_text,
            "scoreboard": guide.scoreboard}[args.command]
    if not args.write:
        print(text())
        return
    pages = guide.write_verdicts() if args.command == "scoreboard" else [guide.write()]
    print(*(f"written to {page}" for page in pages), sep="\n")


_which = _scoreboard = _map


if __name__ == "__main__":
    sys.exit(main())
