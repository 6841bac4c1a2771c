"""Both sides, each as its user would run it: a script with the HF Trainer, a job posted to `chandler serve`."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from . import machine
from .environment import PEER

OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
FINAL = ("succeeded", "failed", "cancelled")


class Peer:
    """The HF Trainer in a process of its own."""

    def __init__(self, environment, folder, preload):
        self.environment, self.folder, self.preload = environment, folder, preload
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, work):
        # As chandler's `auto` does.
        work = {**work, "bf16": work["bf16"] and machine.has_fast_bf16()}
        path = self.folder / "work.json"
        path.write_text(json.dumps(work, default=str))
        env = {**os.environ, **OFFLINE}
        if self.preload:
            env["LD_PRELOAD"] = self.preload
        quiet = machine.Quiet()
        with open(self.folder / "peer.log", "w") as log:
            command = [self.environment.python, PEER / "hf_trainer.py", path]
            process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
            output = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            raise SystemExit(f"the HF side failed: see {self.folder / 'peer.log'}")
        result = json.loads(output.strip().splitlines()[-1])
        result["others_share"] = quiet.others_share(usage.ru_utime + usage.ru_stime)
        return result


class Chandler:
    """`chandler serve` on a fresh data directory; a context manager."""

    def __init__(self, program, folder):
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.url = f"http://{address}"
        self.log = open(folder / "server.log", "w")
        command = [program, "serve", "--listen", address, "--data-dir", folder / "data"]
        env = {**os.environ, **OFFLINE, "RUST_LOG": "warn"}
        self.process = subprocess.Popen([str(part) for part in command], env=env, stdout=self.log, stderr=self.log)

    def __enter__(self):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                self.call("GET", "/readyz")
                return self
            except OSError:
                time.sleep(0.05)
        raise SystemExit(f"the server does not start: see {self.folder / 'server.log'}")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        self.log.close()
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def call(self, method, path, body=None, kind="application/json"):
        request = urllib.request.Request(self.url + path, body, {"content-type": kind}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{method} {path}: {error.code} {error.read().decode()}") from error

    def upload(self, csv):
        name = urllib.parse.quote(Path(csv).stem)
        return self.call("POST", f"/v1/datasets?name={name}", Path(csv).read_bytes(), "text/csv")["id"]

    def series(self, job, name):
        """(step, value) of a metric."""
        points = self.call("GET", f"/v1/jobs/{job}/metrics?names={name}")["data"][name]
        return [(point["step"], point["value"]) for point in points]

    def run(self, spec, train, eval_=None):
        """Posts a job, waits for its end, answers its final metrics."""
        spec = {**spec, "dataset": {"train": self.upload(train)}}
        if eval_:
            spec["dataset"]["eval"] = self.upload(eval_)
        quiet, before = machine.Quiet(), machine.cpu_seconds(self.process.pid)
        job = self.call("POST", "/v1/jobs", json.dumps(spec).encode())["id"]
        trainer = Watch(self.process.pid)
        while (view := self.call("GET", f"/v1/jobs/{job}"))["status"] not in FINAL:
            trainer.look()
            time.sleep(0.02)
        if view["status"] != "succeeded":
            raise SystemExit(f"the job ended as {view['status']}: {view['error']}")
        result = dict(view["metrics"])
        own = trainer.cpu_seconds + machine.cpu_seconds(self.process.pid) - before
        result["others_share"] = quiet.others_share(own)
        # What the trainer says of itself leaves out its last checkpoint; the system knows better.
        reported = int(result.get("train_peak_resident_bytes", 0))
        result["peak_resident_bytes"] = max(reported, trainer.peak_resident_bytes)
        result["server_peak_resident_bytes"] = machine.peak_resident_bytes(self.process.pid)
        result["job"] = job
        return result


class Watch:
    """What the system says about the trainer that a server started."""

    def __init__(self, server):
        self.server, self.pid = server, None
        self.cpu_seconds, self.peak_resident_bytes = 0.0, 0

    def look(self):
        if self.pid is None:
            self.pid = next(iter(machine.children(self.server)), None)
        if self.pid is not None:
            self.cpu_seconds = max(self.cpu_seconds, machine.cpu_seconds(self.pid))
            self.peak_resident_bytes = max(self.peak_resident_bytes, machine.peak_resident_bytes(self.pid))
