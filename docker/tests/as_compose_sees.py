"""Whether Docker Compose 2 sees the layouts that the tests expect; it needs no engine for that.

    .venv/bin/python docker/tests/as_compose_sees.py

By hand, because not every system has a package of it: the tests beside this judge the file without it.
"""

import json
import os
import shutil
import subprocess
import sys

from layouts import COMPOSE, EXPECTED, LAYOUTS, ROOT, services


def command_of_compose() -> list[str]:
    """Docker Compose 2 or newer."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version", "--short"], capture_output=True, text=True)
            if done.returncode == 0 and not done.stdout.startswith("1."):
                return command
    sys.exit("there is no Docker Compose 2")


def main() -> None:
    """Compares each layout, and the one of the plain command."""
    command = command_of_compose()
    env = {k: v for k, v in os.environ.items() if not k.startswith("COMPOSE_")}
    for profile in (None, *LAYOUTS):
        chosen = ["--profile", profile] if profile else []
        done = subprocess.run(
            [*command, "-f", str(COMPOSE.relative_to(ROOT)), *chosen, "config", "--format", "json"],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        if done.returncode or done.stderr:
            sys.exit(done.stderr)
        seen = json.loads(done.stdout)["services"]
        assert set(seen) == EXPECTED[profile or "kafka"], (profile, set(seen))
        for name, service in seen.items():
            of = services()[name]
            assert service.get("environment") == of.get("environment"), name
            assert service["healthcheck"]["test"] == of["healthcheck"]["test"], name
            assert set(service.get("depends_on", {})) == set(of.get("depends_on", {})), name
        print(f"ok: {profile or 'without a profile'}")


if __name__ == "__main__":
    main()
