#!/usr/bin/env python3
"""Leaves a server alone with tiny jobs while servers and trainers are killed, and checks that nothing is lost.

    python3 tests/soak.py target/debug/chandler --minutes 60 --kill-every 30 --seed 1

Two slots train a two-layer BERT. Every `--kill-every` seconds on average one thing happens, drawn from the seed: a trainer or the
server gets SIGKILL, or the server gets SIGTERM and drains or leaves its trainers behind. Jobs are paused, resumed and cancelled in between.
In the second half the server lives on, so that its memory and open files can be looked at over time, and only trainers are killed.

At the end every job must be final, with one end per job, an event log without gaps, no message twice, and for every spec one set of
weights: those of a job that nothing happened to. A job fails only as `poisoned`, and that exactly if three of its trainers were lost, each
by a kill from here. The last line is JSON. Exit code 1 if anything does not hold.

Effective training time is the share of the slots' time that went into steps that were kept: from a trainer's first step to its last
checkpoint or its end, over everything from a job's first start to its end.
"""
import argparse, hashlib, json, os, random, shutil, signal, socket, subprocess, sys, tempfile, time, urllib.error, urllib.request
from datetime import datetime
from pathlib import Path

FIXTURE = Path(__file__).parent / "fixtures" / "tiny-bert"
FINAL = ("succeeded", "failed", "cancelled")
SLOTS = 2
# As many jobs wait or train at any time.
BACKLOG = 5
# A job that loses this many trainers is parked.
DEATHS = 3


def write_model(folder):
    """The fixture's weights with a tokenizer of plain words in front of them."""
    folder.mkdir()
    shutil.copyfile(FIXTURE / "model.safetensors", folder / "model.safetensors")
    config = json.loads((FIXTURE / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (folder / "config.json").write_text(json.dumps(config))
    size = config["vocab_size"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
    words += [f"w{i}" for i in range(size - len(words))]
    special = [
        {"id": i, "content": w, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, w in enumerate(words[:5])
    ]
    template = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]
    pair = template + [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": template, "pair": pair, "special_tokens": {
            "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}, "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                  "vocab": {w: i for i, w in enumerate(words)}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """`chandler serve` on one data directory and one port, started again and again."""

    def __init__(self, program, data_dir):
        self.program, self.data_dir, self.port = program, data_dir, free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.process, self.starts = None, 0

    def start(self):
        command = [self.program, "serve", "--listen", f"127.0.0.1:{self.port}", "--data-dir", self.data_dir, "--slots", str(SLOTS), "--threads", "1"]
        env = dict(os.environ, HF_HUB_OFFLINE="1", RUST_LOG="warn")
        with open(self.data_dir / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=env)
        self.starts += 1
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                return self.call("GET", "/readyz")
            except OSError:
                time.sleep(0.05)
        sys.exit("the server does not start")

    def stop(self, how):
        self.process.send_signal(how)
        self.process.wait(60)

    def call(self, method, path, body=None, headers=None, raw=None):
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        kind = {"content-type": "text/csv" if raw is not None else "application/json"}
        request = urllib.request.Request(self.base + path, data, {**kind, **(headers or {})}, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
            return json.loads(text) if text[:1] in b"{[" else text

    def resident_kb(self):
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith("VmRSS"):
                return int(line.split()[1])

    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def trainers(data_dir):
    """Trainers that belong to this soak: process id -> (job, number of the attempt), as their folder says."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                arguments = open(f"/proc/{entry}/cmdline", "rb").read().decode(errors="replace").split("\0")
            except OSError:
                continue
            if "train" in arguments and (place := [a for a in arguments if a.startswith(f"{data_dir}/jobs/")]):
                job, _, attempt = Path(place[0]).parts[-3:]
                found[int(entry)] = (job, int(attempt))
    return found


class Soak:
    def __init__(self, arguments, data_dir):
        self.random = random.Random(arguments.seed)
        self.arguments = arguments
        self.server = Server(arguments.program, data_dir)
        self.data_dir = data_dir
        self.jobs, self.counts, self.samples = {}, {}, []
        self.killed_trainers, self.killed_servers = set(), []

    def count(self, name):
        self.counts[name] = self.counts.get(name, 0) + 1

    def spec(self, seed):
        return {
            "model": str(self.data_dir / "tiny"), "task": "sequence_classification", "dataset": {"train": self.dataset}, "max_seq_length": 16,
            "training_args": {"max_steps": self.arguments.steps, "learning_rate": 1e-4, "logging_steps": self.arguments.steps // 20,
                              "save_steps": self.arguments.steps // 40, "save_total_limit": 2, "seed": seed},
        }

    def submit(self, seed):
        key = f"soak-{len(self.jobs)}"
        while True:
            try:
                job = self.server.call("POST", "/v1/jobs", self.spec(seed), {"idempotency-key": key})
                break
            except OSError:
                # Killed under our hands: the same key again, so that there is one job whatever became of the first.
                time.sleep(0.2)
        self.jobs[job["id"]] = seed
        return job["id"]

    def prepare(self):
        write_model(self.data_dir / "tiny")
        self.server.start()
        draw = random.Random(7)
        rows = ["text,label"]
        for i in range(64):
            words = " ".join(f"w{draw.randrange(20)}" for _ in range(draw.randrange(1, 8)))
            rows.append(f"{'good' if i % 2 else 'bad'} {words},{i % 2}")
        self.dataset = self.server.call("POST", "/v1/datasets?name=soak", raw="\n".join(rows).encode())["id"]
        # One undisturbed job per spec: what the weights must be.
        started = time.monotonic()
        wanted = {seed: self.submit(seed) for seed in (1, 2)}
        while not all(self.job(i)["status"] in FINAL for i in wanted.values()):
            time.sleep(0.5)
        self.wanted = {seed: self.weights(self.job(i)) for seed, i in wanted.items()}
        print(f"two undisturbed jobs took {time.monotonic() - started:.1f} s", flush=True)

    def job(self, job):
        return self.server.call("GET", f"/v1/jobs/{job}")

    def weights(self, job):
        return hashlib.sha256((Path(job["model_dir"]) / "model.safetensors").read_bytes()).hexdigest()

    def unfinished(self):
        data = []
        for status in ("queued", "running", "paused"):
            data += self.server.call("GET", f"/v1/jobs?limit=100&status={status}")["data"]
        return data

    def top_up(self):
        """Keeps the queue filled; pauses, resumes and cancels now and then."""
        jobs = self.unfinished()
        for job in jobs:
            if job["status"] == "paused":
                self.server.call("POST", f"/v1/jobs/{job['id']}/resume")
                self.count("resumed")
        if jobs and self.random.random() < 0.05:
            job = self.random.choice(jobs)
            action = self.random.choice(["pause", "pause", "cancel"])
            try:
                self.server.call("POST", f"/v1/jobs/{job['id']}/{action}")
                self.count(action)
            except urllib.error.HTTPError as error:
                if error.code != 409:
                    raise
        for _ in range(BACKLOG - len(jobs)):
            self.submit(self.random.choice([1, 2]))

    def disturb(self, server_too):
        what = self.random.choice(["trainer", "trainer", "server", "leave", "drain"] if server_too else ["trainer"])
        alive = trainers(self.data_dir)
        if what == "trainer":
            if not alive:
                return
            pid = self.random.choice(sorted(alive))
            os.kill(pid, signal.SIGKILL)
            self.killed_trainers.add(alive[pid])
        elif what == "server":
            self.server.stop(signal.SIGKILL)
            self.killed_servers.append(time.time())
        elif what == "leave":
            self.server.stop(signal.SIGTERM)
        else:
            self.server.stop(signal.SIGINT)
        self.count(f"kill {what}")
        if what != "trainer":
            self.server.start()

    def run(self):
        self.prepare()
        seconds = self.arguments.minutes * 60
        start = time.monotonic()
        next_disturbance = start + self.pause()
        next_line = start + 60
        while (now := time.monotonic()) < start + seconds:
            try:
                self.top_up()
                if now >= next_disturbance:
                    self.disturb(server_too=now < start + seconds / 2)
                    next_disturbance = time.monotonic() + self.pause()
                if now >= start + seconds / 2:
                    self.samples.append((now - start, self.server.resident_kb(), self.server.open_files()))
                if now >= next_line:
                    next_line += 60
                    print(f"{(now - start) / 60:5.1f} min  {len(self.jobs)} jobs  {self.counts}  {self.server.resident_kb()} kB  {self.server.open_files()} files", flush=True)
            except urllib.error.HTTPError as error:
                if error.code >= 500:
                    print("answer", error.code, error.read()[:300], flush=True)
                    self.count(f"http {error.code}")
            time.sleep(1)
        return self.finish(time.monotonic() - start)

    def pause(self):
        return self.arguments.kill_every * self.random.uniform(0.5, 1.5)

    def finish(self, took):
        deadline = time.monotonic() + self.arguments.settle
        while time.monotonic() < deadline and (left := self.unfinished()):
            for job in left:
                if job["status"] == "paused":
                    self.server.call("POST", f"/v1/jobs/{job['id']}/resume")
            time.sleep(1)
        stuck = [(j["id"], j["status"]) for j in self.unfinished()]
        faults, by_status, kept, busy, poisoned = [], {}, 0.0, 0.0, 0
        for job_id, seed in self.jobs.items():
            try:
                job = self.job(job_id)
            except urllib.error.HTTPError as error:
                faults.append(f"{job_id}: acknowledged, now {error.code}")
                continue
            by_status[job["status"]] = by_status.get(job["status"], 0) + 1
            events = self.events(job_id)
            faults += [f"{job_id}: {fault}" for fault in [*check_log(job, events), *self.check_losses(job, events)]]
            poisoned += job["status"] == "failed" and job["error"]["code"] == "poisoned"
            if job["status"] == "succeeded" and self.weights(job) != self.wanted[seed]:
                faults.append(f"{job_id}: other weights after {job['attempt']} attempts")
            if job["status"] == "succeeded":
                job_kept, job_busy = effective(events)
                kept, busy = kept + job_kept, busy + job_busy
        kills = sum(n for name, n in self.counts.items() if name.startswith("kill"))
        result = {
            "seed": self.arguments.seed, "minutes": round(took / 60, 1), "jobs": len(self.jobs), "by_status": by_status, "poisoned": poisoned, "kills": kills,
            "counts": self.counts, "server_starts": self.server.starts, "effective_training_time": round(kept / max(busy, 1e-9), 4),
            "stuck": stuck, "faults": faults, **self.growth(),
        }
        self.server.stop(signal.SIGINT)
        left = trainers(self.data_dir)
        if left:
            faults.append(f"trainers left behind: {sorted(left)}")
        print(json.dumps(result))
        return 1 if faults or stuck else 0

    def check_losses(self, job, events):
        """What is wrong with how often a job's trainers were lost, and with what came of it."""
        poisoned = job["status"] == "failed" and job["error"]["code"] == "poisoned"
        if job["status"] == "failed" and not poisoned:
            yield f"{job['error']['code']}: {job['error']['message'][:100]}"
        losses = [e for e in events if e["type"] == "requeued" and "trying again" in e["data"]["reason"]]
        losses += [e for e in events if e["type"] == "failed" and poisoned]
        if poisoned != (len(losses) == DEATHS) or len(losses) > DEATHS:
            yield f"{job['status']} after {len(losses)} trainers were lost"
        for e in losses:
            # A server killed between a claim and the start of its trainer loses the attempt as well.
            by_server = any(0 <= instant(e) - killed < 60 for killed in self.killed_servers)
            if (job["id"], e["attempt"]) not in self.killed_trainers and not by_server:
                yield f"attempt {e['attempt']} was lost, and nobody had killed it"

    def events(self, job):
        events = []
        while True:
            page = self.server.call("GET", f"/v1/jobs/{job}/events?limit=1000&after={events[-1]['seq'] if events else 0}")
            events += page["data"]
            if not page["has_more"]:
                return events

    def growth(self):
        """Memory and open files of the server that lived through the second half, after its first minute."""
        late = [s for s in self.samples if s[0] > self.samples[0][0] + 60] if self.samples else []
        if len(late) < 20:
            return {}
        fifth = len(late) // 5
        mean = lambda part, k: sum(s[k] for s in part) / len(part)
        first, last = late[:fifth], late[-fifth:]
        return {
            "resident_kb": [round(mean(first, 1)), round(mean(last, 1))],
            "resident_growth": round(mean(last, 1) / mean(first, 1) - 1, 4),
            "open_files": [round(mean(first, 2), 1), round(mean(last, 2), 1)],
        }


def instant(event):
    return datetime.fromisoformat(event["created_at"].replace("Z", "+00:00")).timestamp()


def check_log(job, events):
    """What is wrong with a job's event log."""
    if [e["seq"] for e in events] != list(range(1, len(events) + 1)):
        yield "the log has gaps"
    ends = [e["type"] for e in events if e["type"] in FINAL]
    if job["status"] in FINAL and ends != [job["status"]]:
        yield f"{job['status']}, but the log says {ends}"
    steps = [e["data"]["step"] for e in events if e["type"] == "metrics" and "loss" in e["data"]["values"]]
    if job["status"] == "succeeded":
        values = {e["data"]["step"]: set() for e in events if e["type"] == "metrics"}
        for e in events:
            if e["type"] == "metrics" and "loss" in e["data"]["values"]:
                values[e["data"]["step"]].add(e["data"]["values"]["loss"])
        if any(len(losses) > 1 for losses in values.values()):
            yield "a repeated step has another loss"
        if len(set(steps)) < 20:
            yield f"only {len(set(steps))} of 20 loss entries"


def effective(events):
    """Seconds of a job that went into steps that were kept, and seconds from its first start to its end, without pauses asked for."""
    kept = busy = 0.0
    started = first_step = last_kept = waiting = None
    for e in events:
        kind, now = e["type"], instant(e)
        if kind == "started":
            busy += now - waiting if waiting else 0
            started, first_step, last_kept, waiting = now, None, None, None
        elif kind == "phase" and e["data"]["phase"] == "training" and first_step is None:
            first_step = last_kept = now
        elif kind == "checkpoint":
            last_kept = now
        elif kind in ("requeued", "paused", *FINAL) and started:
            if kind in ("succeeded", "paused"):
                last_kept = now
            if first_step:
                kept += last_kept - first_step
            busy += now - started
            started = None
            waiting = now if kind == "requeued" and "trying again" in e["data"]["reason"] else None
    return kept, busy


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program", type=lambda p: str(Path(p).resolve()))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--kill-every", type=float, default=30, help="seconds between disturbances, on average")
    parser.add_argument("--steps", type=int, default=8000, help="optimizer steps of one job")
    parser.add_argument("--settle", type=float, default=300, help="seconds the last jobs may take")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chandler-soak-") as folder:
        soak = Soak(arguments, Path(folder))
        try:
            sys.exit(soak.run())
        finally:
            for pid in trainers(folder):
                os.kill(pid, signal.SIGKILL)
            if soak.server.process and soak.server.process.poll() is None:
                soak.server.process.kill()


if __name__ == "__main__":
    main()
