"""The greatest rate of online reads, by clients in C, which leave the processors to the server.

`wrk` asks over HTTP, the same questions as online_load.py in turn; `h2load` asks over gRPC, one and the
same question all the time (it knows no more). Both are closed loops: a connection asks again when it has its
answer.

Run as a program it says which of them are missing, and how to install them, and exits 1 then.
"""

import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import online_grpc
import online_http
from online_http import BadAnswer

WARMUP_S = 2
PACKAGES = {"wrk": "wrk", "h2load": "nghttp2-client"}

SCRIPT = """
local bodies = {}
for line in io.lines("%s") do bodies[#bodies + 1] = line end
local requests, at = {}, 0
function init()
  local headers = {["Content-Type"] = "application/json"}
  for i, body in ipairs(bodies) do requests[i] = wrk.format("POST", "%s", headers, body) end
end
function request()
  at = at %% #requests + 1
  return requests[at]
end
function done(summary)
  local e = summary.errors
  print(string.format('{"requests": %%d, "us": %%d, "bad": %%d}', summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def missing() -> str | None:
    """What to do about programs that are not there."""
    lacking = [name for name in PACKAGES if not shutil.which(name)]
    if not lacking:
        return None
    packages = " ".join(PACKAGES[name] for name in lacking)
    return f"missing: {', '.join(lacking)}. Install with: apt-get install {packages}"


def run(command: list) -> tuple[str, float]:
    """What a client says, and its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise BadAnswer(f"{command[0]}: {done.stdout}{done.stderr}")
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def over_http(url: str, bodies: list[dict], seconds: int, connections: int, folder: Path) -> dict:
    """By wrk."""
    questions, script = folder / "bodies.ndjson", folder / "wrk.lua"
    questions.write_text("".join(json.dumps(b, separators=(",", ":")) + "\n" for b in bodies))
    script.write_text(SCRIPT % (questions, online_http.PATH))
    command = ["wrk", "-t1", f"-c{connections}", "-s", script, "--timeout", "30s"]
    run([*command, f"-d{WARMUP_S}s", url])
    said, cpu = run([*command, f"-d{seconds}s", url])
    told = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    if told["bad"] or not told["requests"]:
        raise BadAnswer(f"wrk had errors: {said}")
    return rate("wrk", told["requests"], told["us"] / 1e6, cpu)


def over_grpc(url: str, body: dict, seconds: int, connections: int, folder: Path) -> dict:
    """By h2load."""
    address = urlsplit(url)
    question = folder / "question.grpc"
    question.write_bytes(online_grpc.message(body))
    client = online_grpc.Client(address.hostname, address.port)
    client.send(online_grpc.request_bytes(address.hostname, address.port, body), 0.0)
    while not client.receive():
        pass
    online_grpc.check(body, client.body())
    expected = 5 + len(client.body())
    client.socket.close()
    command = ["h2load", "-t1", f"-c{connections}", "-m1", "-d", question]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    command += [f"--warm-up-time={WARMUP_S}", "-D", str(seconds), f"{url}{online_grpc.PATH}"]
    said, cpu = run(command)
    done, failed, errored = (
        int(re.search(rf"(\d+) {what}", said)[1]) for what in ("succeeded", "failed", "errored")
    )
    received = int(re.search(r"\((\d+)\) total", said)[1])
    # An error has no data, but the status of HTTP is 200. (The total leaves out the warm-up, the data do not;
    # a connection's first answer may have come partly in the warm-up.)
    if failed or errored or not done or received < 0.98 * (done - connections) * expected:
        said = said[said.find("finished in") :]
        raise BadAnswer(f"h2load had errors (an answer has {expected} bytes): {said}")
    # Of the processor's time the warm-up had its part.
    return rate("h2load", done, seconds, cpu * seconds / (seconds + WARMUP_S))


def rate(client: str, requests: int, seconds: float, cpu: float) -> dict:
    """What is told of either."""
    return {
        "client": client,
        "requests": requests,
        "requests_per_s": round(requests / seconds, 1),
        "client_us": round(1e6 * cpu / requests, 1),
    }


if __name__ == "__main__":
    sys.exit(missing())
