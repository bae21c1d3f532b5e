"""The steps of docker/Dockerfile, run without a container engine in a folder of its own.

    python3 docker/steps.py FOLDER                    all of it; it compiles everything
    python3 docker/steps.py FOLDER --program FILE     takes a program that is built already
    python3 docker/steps.py FOLDER --list             only says what it would do

FOLDER must not be there, or be empty. FOLDER/root stands for the root of the image's file system:
what the Dockerfile does in /app happens in FOLDER/root/app. Each stage begins with an empty root,
so that the last one has only what is copied into it. Files of the checkout are those that git
knows, as they lie here.

What is not as in a container: compiler, interpreter and libraries are this machine's. The RUN step
of the last stage installs packages and adds a user, so it is left out; instead this looks whether
the packages are here, and whether every library of the program is found. What scripts/setup.sh
--node finds missing, it installs.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

CHECKOUT = Path(__file__).resolve().parents[1]
DOCKERFILE = CHECKOUT / "docker" / "Dockerfile"
# Folders that are the image's own where a step names them; others (/dev, /var) are the machine's.
OURS = ("/app", "/data", "/opt", "/spool", "/target", "/usr/local/bin")
OUR_PATH = re.compile(rf"(?<![\w.$/])({'|'.join(OURS)})(?![\w.-])")
# Variables that would lead cargo or the set-up out of the folder.
OF_THE_MACHINE = ("CARGO_BUILD", "CARGO_TARGET", "DUCKDB", "MILLSTREAM", "PYO3", "RUSTFLAGS")
EVENT = {"user_id": 42, "action": "click", "timestamp": "2026-01-01T12:00:00Z"}


@dataclass
class Step:
    """One instruction; its options, as in `--from=build`, are not in its text."""

    name: str
    text: str
    options: dict[str, str]

    @property
    def sources(self) -> list[str]:
        return self.text.split()[:-1]

    @property
    def target(self) -> str:
        return self.text.split()[-1]


@dataclass
class Stage:
    """From one FROM to the next."""

    image: str
    name: str
    steps: list[Step]

    def of(self, name: str) -> list[Step]:
        return [step for step in self.steps if step.name == name]


def read(dockerfile: Path = DOCKERFILE) -> list[Stage]:
    """The stages of a Dockerfile."""
    lines = dockerfile.read_text("utf-8").splitlines()
    code = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    stages: list[Stage] = []
    for line in "\n".join(code).replace("\\\n", " ").splitlines():
        name, *words = line.split()
        options = {}
        while words and words[0].startswith("--"):
            key, _, value = words.pop(0).removeprefix("--").partition("=")
            options[key] = value
        if name == "FROM":
            stages.append(Stage(words[0], words[2] if len(words) == 3 else "last", []))
        else:
            stages[-1].steps.append(Step(name, " ".join(words), options))
    return stages


def known(path: str, checkout: Path = CHECKOUT) -> list[str]:
    """The files at or below a path of the checkout that git knows and that are there."""
    command = ["git", "ls-files", "-z", "--", path]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    return sorted(p for p in done.stdout.split("\0") if p and (checkout / p).is_file())


def copied(step: Step, workdir: str, checkout: Path = CHECKOUT) -> dict[str, str]:
    """The files of the checkout that a COPY takes, each with its place in the image."""
    target = PurePosixPath(workdir, step.target)
    as_folder = step.target.endswith("/") or len(step.sources) > 1
    places = {}
    for source in step.sources:
        files = known(source, checkout)
        if not files:
            raise FileNotFoundError(f"COPY {step.text}: git knows nothing at {source}")
        for file in files:
            # Of a folder the content is copied, not the folder.
            inner = PurePosixPath(file).relative_to(source)
            if inner == PurePosixPath("."):
                inner = PurePosixPath(file).name if as_folder else inner
            places[file] = str(target / inner)
    return places


def below(root: Path, text: str) -> str:
    """A text in which the image's own folders are put below `root`."""
    return OUR_PATH.sub(lambda found: f"{root}{found[1]}", text)


class Run:
    """One run of all the stages."""

    def __init__(
        self,
        folder: Path,
        checkout: Path = CHECKOUT,
        only_list: bool = False,
        program: Path | None = None,
    ):
        self.folder, self.checkout, self.only_list = folder.absolute(), checkout, only_list
        self.program = program
        self.root = self.folder / "root"
        self.env: dict[str, str] = {}
        self.workdir = "/"

    def place(self, inside: str) -> Path:
        """Where a path of the image is, seen from its working directory."""
        return self.root / str(PurePosixPath(self.workdir, inside)).lstrip("/")

    def all(self, stages: list[Stage]) -> None:
        for stage in stages:
            last = stage is stages[-1]
            say(f"== stage {stage.name}, which a container begins from {stage.image}")
            self.env, self.workdir = {}, "/"
            for step in stage.steps:
                self.step(step, last)
            if not last and not self.only_list:
                self.root.rename(self.folder / stage.name)

    def step(self, step: Step, last: bool) -> None:
        options = "".join(f" --{key}={value}" for key, value in step.options.items())
        say(f"{step.name}{options} {step.text}")
        if step.name == "ENV":
            key, _, value = step.text.partition("=")
            self.env[key] = below(self.root, value)
        elif step.name == "WORKDIR":
            self.workdir = step.text
        elif step.name == "RUN" and last:
            say("   left out, it changes the machine")
        elif step.name == "RUN":
            self.run(step)
        elif step.name == "COPY" and not self.only_list:
            self.copy(step)

    def copy(self, step: Step) -> None:
        if "from" not in step.options:
            for file, place in copied(step, self.workdir, self.checkout).items():
                put(self.checkout / file, self.place(place))
            return
        for source in step.sources:
            put(self.folder / step.options["from"] / source.lstrip("/"), self.place(step.target))

    def run(self, step: Step) -> None:
        command = below(self.root, step.text)
        if command != step.text:
            say(f"   as {command}")
        if self.only_list:
            return
        for folder in OURS:
            self.place(folder).mkdir(parents=True, exist_ok=True)
        if self.program and "cargo build" in command:
            say(f"   instead, {self.program} is taken")
            put(self.program, self.place("/usr/local/bin/millstream"))
            return
        env = {k: v for k, v in os.environ.items() if not k.startswith(OF_THE_MACHINE)}
        # What it prints is no answer of this program.
        subprocess.run(
            ["sh", "-ec", command], cwd=self.place("."), env=env | self.env, check=True, stdout=2
        )


def put(here: Path, there: Path) -> None:
    there.parent.mkdir(parents=True, exist_ok=True)
    if here.is_dir():
        shutil.copytree(here, there, symlinks=True, dirs_exist_ok=True)
    else:
        shutil.copy2(here, there)


def packages(stage: Stage) -> list[str]:
    """What a stage installs with apt-get."""
    installed = []
    for step in stage.of("RUN"):
        for words in re.findall(r"apt-get install ([^&|;]+)", step.text):
            installed += [word for word in words.split() if not word.startswith("-")]
    return installed


def look(run: Run, stage: Stage) -> None:
    """Whether the last stage has all that the program needs."""
    program = run.place("/usr/local/bin/millstream")
    for package in packages(stage):
        subprocess.run(["dpkg-query", "-W", package], check=True, stdout=2)
    needs = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    if missing := [line.strip() for line in needs.splitlines() if "not found" in line]:
        sys.exit("error: libraries are missing: " + ", ".join(missing))
    env = {"PATH": "/usr/bin:/bin", "HOME": str(run.folder)} | run.env
    with tempfile.NamedTemporaryFile("w", suffix=".ndjson") as events:
        print(json.dumps(EVENT), file=events, flush=True)
        for words in (
            ["--version"],
            ["transforms", "try", "click_features", "--input", events.name],
        ):
            say("millstream " + " ".join(words))
            subprocess.run([program, *words], cwd=run.place("."), env=env, check=True, stdout=2)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--program", type=Path, metavar="FILE", help="do not compile, take this")
    parser.add_argument("--list", action="store_true", help="only say what would be done")
    args = parser.parse_args()
    if args.folder.exists() and any(args.folder.iterdir()):
        parser.error(f"{args.folder} is not empty")
    stages, run = read(), Run(args.folder, only_list=args.list, program=args.program)
    run.all(stages)
    if not args.list:
        look(run, stages[-1])
        say(f"ok: {run.root} has what the image would have")


if __name__ == "__main__":
    main()
