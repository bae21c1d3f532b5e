"""The Dockerfile: what its steps copy is there and is enough. Nothing is built here."""

import re
import subprocess
import tomllib
from pathlib import Path, PurePosixPath

import pytest
import steps
from layouts import ROOT, mounts, services

BUILD, LAST = steps.read()
CFG_TEST_MODULE = re.compile(
    r"#\[cfg\(test\)\]\s*(?:#\[[^\]]*\]\s*)*(?:pub(?:\([a-z]+\))? )?mod (\w+)"
)


def in_build() -> set[str]:
    """The files of the checkout that the build stage has."""
    return {file for step in BUILD.of("COPY") for file in steps.copied(step, "/app")}


def test_there_are_two_stages_and_both_are_of_one_debian():
    assert (BUILD.name, LAST.steps[-1].name) == ("build", "CMD")
    tags = [stage.image.split(":")[1] for stage in (BUILD, LAST)]
    assert [re.search("bookworm|trixie|forky", tag)[0] for tag in tags] == ["bookworm"] * 2


def test_the_compiler_is_new_enough():
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text("utf-8"))
    has = re.match(r"rust:(\d+)\.(\d+)-", BUILD.image).groups()
    wants = cargo["package"]["rust-version"].split(".")[:2]
    assert tuple(map(int, has)) >= tuple(map(int, wants))


@pytest.mark.parametrize("step", BUILD.of("COPY"), ids=lambda step: step.text)
def test_what_is_copied_is_in_git(step):
    assert steps.copied(step, "/app")
    for source in step.sources:
        assert (ROOT / source).exists()


def test_a_file_keeps_its_place():
    for step in BUILD.of("COPY"):
        for file, place in steps.copied(step, "/app").items():
            assert place == f"/app/{file}"


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out; the patterns used there are plain names and `**/`."""
    for pattern in (ROOT / ".dockerignore").read_text("utf-8").split():
        assert re.fullmatch(r"(\*\*/)?[\w.]+", pattern), pattern
        parts = PurePosixPath(path).parts
        if pattern.removeprefix("**/") in (parts if pattern.startswith("**/") else parts[:1]):
            return True
    return False


def test_the_docker_context_has_what_is_copied():
    assert [file for file in sorted(in_build()) if ignored(file)] == []
    assert ignored("target/release/x") and ignored("python/src/__pycache__/x.pyc")


def rust_files() -> list[Path]:
    """The sources of the program, without the modules that only tests have."""
    of_tests = set()
    for file in (ROOT / "src").rglob("*.rs"):
        folder = file.parent if file.stem in ("lib", "main", "mod") else file.parent / file.stem
        for name in CFG_TEST_MODULE.findall(file.read_text("utf-8")):
            of_tests |= {folder / f"{name}.rs", folder / name}
    return [
        file
        for file in sorted((ROOT / "src").rglob("*.rs"))
        if not of_tests & {file, *file.parents}
    ]


def without_tests(text: str) -> str:
    """The code before `mod tests {`, which stands last in a file."""
    return re.split(r"#\[cfg\(test\)\]\s*mod \w+ \{", text)[0]


def embedded() -> dict[str, str]:
    """What the compiler reads besides Rust, and where that is said."""
    found = {}
    for file in rust_files():
        text, here = without_tests(file.read_text("utf-8")), str(file.relative_to(ROOT))
        for name in re.findall(r'include_(?:str|bytes)!\(\s*"([^"]+)"', text):
            found[str((file.parent / name).resolve().relative_to(ROOT))] = here
        for name in re.findall(r'#\[folder = "([^"]+)"\]', text):
            found[name.rstrip("/")] = here
    build = (ROOT / "build.rs").read_text("utf-8")
    for name in re.findall(r'"(proto(?:/\w+\.proto)?)"', build):
        found[name] = "build.rs"
    return found


def test_what_is_put_into_the_program_is_copied():
    has = in_build()
    has |= {str(parent) for file in has for parent in PurePosixPath(file).parents}
    assert {name: here for name, here in embedded().items() if name not in has} == {}


def test_the_search_for_what_is_put_into_the_program_finds_it():
    found = embedded()
    assert found["web"] == "src/service/http.rs"
    assert found["src/python/bootstrap.py"] == "src/python/session.rs"
    assert "proto/worker.proto" in found
    # Only a test reads it.
    assert "millstream.example.toml" not in found


def test_the_crate_is_copied_whole():
    has, cargo = in_build(), tomllib.loads((ROOT / "Cargo.toml").read_text("utf-8"))
    assert {"Cargo.toml", "Cargo.lock", "build.rs"} <= has
    assert {str(file.relative_to(ROOT)) for file in rust_files()} <= has | not_in_git()
    # Cargo refuses a manifest that names a target without a file.
    for bench in cargo.get("bench", []):
        assert f"benches/{bench['name']}.rs" in has
    for table in ("dependencies", "build-dependencies", "dev-dependencies"):
        for name, what in cargo.get(table, {}).items():
            assert not isinstance(what, dict) or "path" not in what, f"copy {name} too"


def not_in_git() -> set[str]:
    """Files that are new and not added yet."""
    command = ["git", "ls-files", "-z", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split("\0"))


def test_the_set_up_has_what_it_reads_before_it_runs():
    names = [step.name for step in BUILD.steps]
    before = BUILD.steps[: names.index("RUN")]
    has = {f for s in before if s.name == "COPY" for f in steps.copied(s, "/app")}
    has |= {str(parent) for file in has for parent in PurePosixPath(file).parents}
    (run,) = [step for step in BUILD.of("RUN") if "setup.sh" in step.text]
    assert run.text == "scripts/setup.sh --node"
    text = "".join((ROOT / "scripts" / f).read_text("utf-8") for f in ("setup.sh", "common.sh"))
    reads = set(re.findall(r"\$ROOT/([\w./-]+\w)", text))
    # What it writes itself.
    made = {".venv", ".cargo/config.toml", ".cargo/features"}
    assert reads - made - has == set()
    assert "py_transforms/requirements.txt" in reads


def test_the_last_stage_takes_what_the_first_one_makes():
    env = dict(step.text.split("=", 1) for step in BUILD.of("ENV"))
    made = {f"{env['XDG_CACHE_HOME']}/millstream", "/app/.venv", "/usr/local/bin/millstream"}
    taken = {source for step in LAST.of("COPY") for source in step.sources}
    assert made <= taken
    for source in taken - made:
        assert steps.known(source.removeprefix("/app/")), source
    assert {step.options["from"] for step in LAST.of("COPY")} == {BUILD.name}
    # The library is linked by its full path, the environment names its own.
    for step in LAST.of("COPY"):
        assert str(PurePosixPath("/app", step.target)) == step.sources[0]


def test_the_program_starts_where_scripts_and_environment_lie():
    example = tomllib.loads((ROOT / "millstream.example.toml").read_text("utf-8"))
    folder = example["python"]["transforms_dir"]
    targets = {step.target for step in LAST.of("COPY")}
    assert {folder, ".venv"} <= targets
    (workdir,) = LAST.of("WORKDIR")
    for name in ("node", "process-1", "process-2"):
        assert mounts(services()[name])[f"{workdir.text}/{folder}"] == f"../{folder}"


def test_the_user_of_the_program_owns_what_is_mounted_for_writing():
    (user,) = LAST.of("USER")
    (run,) = LAST.of("RUN")
    owned = re.search(rf"install -d -o {user.text} -g {user.text} ([/\w ]+)", run.text)[1].split()
    for name, service in services().items():
        if service["image"] == "millstream":
            for place, source in mounts(service).items():
                assert source.startswith(".") or place in owned, f"{name}: {place}"


def test_the_health_check_finds_its_interpreter():
    assert services()["node"]["healthcheck"]["test"][1] == "python3"
    assert "python3" in steps.packages(LAST)


def test_steps_are_run_in_a_folder_of_their_own(tmp_path):
    checkout = tmp_path / "checkout"
    (checkout / "src" / "deep").mkdir(parents=True)
    (checkout / "src" / "deep" / "a.txt").write_text("a")
    (checkout / "src" / "not_added.txt").write_text("b")
    (checkout / "one.txt").write_text("1")
    (checkout / "Dockerfile").write_text(
        "# a comment\nFROM x:1 AS build\nENV HOME_OF=/opt\nWORKDIR /app\n"
        "COPY src src\nCOPY one.txt ./\n"
        "RUN --mount=type=cache,target=/target \\\n"
        '    cat src/deep/a.txt one.txt >"$HOME_OF/made" && cp one.txt /usr/local/bin/ 2>/dev/null\n'
        "FROM y:2\nRUN touch /opt/never\nWORKDIR /app\n"
        "COPY --from=build /opt/made /opt/made\nCOPY --from=build /app/src here\n"
    )
    for command in (["init", "-q"], ["add", "src/deep", "one.txt"]):
        subprocess.run(["git", *command], cwd=checkout, check=True)
    run = steps.Run(tmp_path / "out", checkout)
    run.all(steps.read(checkout / "Dockerfile"))
    files = sorted(
        str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()
    )
    assert files == [
        "build/app/one.txt", "build/app/src/deep/a.txt", "build/opt/made",
        "build/usr/local/bin/one.txt", "root/app/here/deep/a.txt", "root/opt/made",
    ]  # fmt: skip
    assert (run.root / "opt" / "made").read_text() == "a1"


def test_a_source_that_git_does_not_know_is_an_error():
    step = steps.Step("COPY", "no-such-folder there", {})
    with pytest.raises(FileNotFoundError, match="no-such-folder"):
        steps.copied(step, "/app")
