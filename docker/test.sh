#!/usr/bin/env bash
# Builds the image and proves what a container promises. Run without any right and any network, on a root that
# cannot be written, it gets healthy, trains, is stopped in the middle of a job, and the next container on the
# same volume goes on and ends with the weights of a job that nobody stopped.
#
#   docker/test.sh [cpu|cuda]                 needs root, python3, curl, and Docker or Podman
#
#   CONTAINER_ENGINE=podman                   instead of Docker
#   RUST_IMAGE=… RUNTIME_IMAGE=…              other base images; docker/local-bases.sh makes some without a registry
#   BUILD_OPTIONS='--volume …'                more options of the engine's `build`
#   PROGRAM=FOLDER                            packs FOLDER/chandler instead of compiling it
set -euo pipefail
cd "$(dirname "$0")/.."

target="${1:-cpu}"
engine="${CONTAINER_ENGINE:-docker}"
image="chandler-test:$target"
name="chandler-test-$$"
volume="$name"
# An image for CPUs has no business being larger. The other one is mostly cuBLASLt.
declare -A max_mb=([cpu]=150 [cuda]=800)
# What compose.yaml and kubernetes.yaml allow between SIGTERM and SIGKILL.
grace_s=60
work="$(mktemp -d)"

step() { printf '\n== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }
cleanup() {
    "$engine" rm --force "$name" > /dev/null 2>&1 || true
    "$engine" volume rm --force "$volume" > /dev/null 2>&1 || true
    rm -rf "$work"
}
trap cleanup EXIT

# -- the container

# As compose.yaml runs it, and with less: no network, and nowhere to write but the volume.
start() {
    local only_data=()
    [[ "$engine" != podman ]] || only_data=(--read-only-tmpfs=false)
    "$engine" run --detach --name "$name" --read-only "${only_data[@]}" --network none --cap-drop ALL \
        --security-opt no-new-privileges --volume "$volume:/data" --volume "$work/model:/model:ro" \
        --env CHANDLER_THREADS=1 --env CHANDLER_HEARTBEAT_MS=200 "$image" > /dev/null
}
inspect() { "$engine" inspect --format "$1" "$name"; }
# As a platform stops it. 137 would be SIGKILL.
stop() {
    local began=$SECONDS code
    "$engine" stop --time "$grace_s" "$name" > /dev/null
    code="$(inspect '{{.State.ExitCode}}')"
    [[ "$code" == 0 ]] || fail "process 1 ended with $code after $((SECONDS - began)) s"
    echo "gone after $((SECONDS - began)) s"
}
remove() { "$engine" rm "$name" > /dev/null; }
healthy() {
    if [[ "$engine" == podman ]]; then
        # Podman leaves the interval to systemd.
        podman healthcheck run "$name" > /dev/null 2>&1
    else
        [[ "$(inspect '{{.State.Health.Status}}')" == healthy ]]
    fi
}
await_healthy() {
    for _ in $(seq 300); do
        if healthy; then return; fi
        sleep 0.2
    done
    "$engine" logs "$name" >&2
    fail "not healthy in 60 s"
}

# -- its API, from inside its network

api() { nsenter --target "$(inspect '{{.State.Pid}}')" --net curl --silent --show-error --max-time 30 "$@"; }
url=http://127.0.0.1:8080
field() { python3 -c 'import json, sys; print(eval("v" + sys.argv[1], {"v": json.load(sys.stdin)}))' "$1"; }
job() { api "$url/v1/jobs/$1" | field "$2"; }
submit() {
    api --header 'content-type: application/json' "$url/v1/jobs" --data @- << JSON | field '["id"]'
{"model": "/model", "task": "sequence_classification", "dataset": {"train": "$1"}, "max_seq_length": 16,
 "training_args": {"num_train_epochs": 1000, "learning_rate": 1e-3, "logging_steps": 5000,
                   "save_strategy": "steps", "save_steps": 20000, "save_total_limit": 2, "seed": 7}}
JSON
}
await_step() {
    for _ in $(seq 600); do
        [[ "$(job "$1" '["status"]')" != failed ]] || { job "$1" '["error"]' >&2; fail "the job failed"; }
        if (($(job "$1" '["progress"] and v["progress"]["global_step"] or 0') > $2)); then return; fi
        sleep 0.1
    done
    fail "no step after $2 in 60 s"
}
await_success() {
    for _ in $(seq 1200); do
        case "$(job "$1" '["status"]')" in
            succeeded) return ;;
            failed | cancelled) job "$1" '["error"]' >&2; fail "the job did not succeed" ;;
        esac
        sleep 0.2
    done
    fail "the job did not end in 240 s"
}
# The step that the newest attempt went on from; 0 if it began anew.
resumed_at() {
    api "$url/v1/jobs/$1/events?limit=1000" | python3 -c '
import json, sys
said = [e["data"]["message"] for e in json.load(sys.stdin)["data"] if e["type"] == "log"]
print(([0] + [line.split()[-1] for line in said if line.startswith("resumed from the checkpoint of step")])[-1])'
}
weights_of() { api "$url/v1/jobs/$1/checkpoints/last/files/model.safetensors" | sha256sum | cut -d' ' -f1; }

# A model of two small layers and the words w0 to w94.
make_model() {
    mkdir "$work/model"
    cp tests/fixtures/tiny-bert/{config.json,model.safetensors} "$work/model"
    python3 - "$work" << 'PY'
import json, random, sys
vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [f"w{i}" for i in range(95)]
special = lambda word: {"SpecialToken": {"id": word, "type_id": 0}}
json.dump({
    "version": "1.0", "truncation": None, "padding": None,
    "added_tokens": [{"id": i, "content": word, "single_word": False, "lstrip": False, "rstrip": False,
                      "normalized": False, "special": True} for i, word in enumerate(vocab[:5])],
    "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                   "strip_accents": None, "lowercase": True},
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {"type": "TemplateProcessing",
                       "single": [special("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]")],
                       "pair": [special("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]"),
                                {"Sequence": {"id": "B", "type_id": 1}}],
                       "special_tokens": {word: {"id": word, "ids": [vocab.index(word)], "tokens": [word]}
                                          for word in ("[CLS]", "[SEP]")}},
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
              "max_input_chars_per_word": 100, "vocab": {word: i for i, word in enumerate(vocab)}},
}, open(sys.argv[1] + "/model/tokenizer.json", "w"))
choose = random.Random(1)
with open(sys.argv[1] + "/train.csv", "w") as rows:
    rows.write("text,label\n")
    for _ in range(800):
        words = choose.choices(range(95), k=10)
        rows.write(" ".join(f"w{i}" for i in words) + f",{'low' if words[0] < 47 else 'high'}\n")
PY
    chmod -R a+rX "$work"
}

# -- the test

if [[ -n "${PROGRAM:-}" ]]; then
    BUILD_OPTIONS="${BUILD_OPTIONS:-} --build-context $([[ $target == cpu ]] && echo program || echo "program-$target")=$PROGRAM"
fi
for base in RUST_IMAGE RUNTIME_IMAGE; do
    [[ -z "${!base:-}" ]] || BUILD_OPTIONS="${BUILD_OPTIONS:-} --build-arg $base=${!base}"
done
# Podman's own format of images has no health check.
[[ "$engine" != podman ]] || BUILD_OPTIONS="${BUILD_OPTIONS:-} --format docker"

step "build"
began=$SECONDS
# Several options in one variable.
# shellcheck disable=SC2086
"$engine" build ${BUILD_OPTIONS:-} --file docker/Dockerfile --target "$target" --tag "$image" .
size_mb=$(("$("$engine" image inspect --format '{{.Size}}' "$image")" / 1000000))
echo "built in $((SECONDS - began)) s: $size_mb MB"
((size_mb < max_mb[$target])) || fail "the image is $size_mb MB, more than ${max_mb[$target]}"

step "SIGTERM while it starts"
make_model
"$engine" volume create "$volume" > /dev/null
start
stop
remove

step "healthy"
start
await_healthy
"$engine" exec "$name" chandler healthcheck
"$engine" exec "$name" chandler --version

step "stopped in the middle of a job"
dataset="$(api --header 'content-type: text/csv' --data-binary "@$work/train.csv" "$url/v1/datasets?name=train" | field '["id"]')"
interrupted="$(submit "$dataset")"
await_step "$interrupted" 300
seen="$(job "$interrupted" '["progress"]["global_step"]')"
echo "at step $seen"
stop
remove

step "goes on in the next container"
start
await_healthy
await_success "$interrupted"
resumed="$(resumed_at "$interrupted")"
((resumed >= seen)) || fail "steps $resumed to $seen were lost"
echo "attempt $(job "$interrupted" '["attempt"]') went on from step $resumed"
undisturbed="$(submit "$dataset")"
await_success "$undisturbed"
[[ "$(weights_of "$interrupted")" == "$(weights_of "$undisturbed")" ]] || fail "other weights than without the stop"
echo "the same weights as without the stop: $(weights_of "$interrupted")"

step "a killed trainer is reaped, and its job goes on"
victim="$(submit "$dataset")"
await_step "$victim" 300
server="$(inspect '{{.State.Pid}}')"
kill -9 "$(pgrep --parent "$server")"
await_success "$victim"
[[ "$(weights_of "$victim")" == "$(weights_of "$undisturbed")" ]] || fail "other weights than without the kill"
sleep 1
left="$(pgrep --parent "$server" || true)"
[[ -z "$left" ]] || fail "children are left: $left"
echo "attempts: $(job "$victim" '["attempt"]')"

step "all passed: $image, $size_mb MB"
