# Sets up a machine that has PyTorch and common packages, but no network. Source it in the root of the repository:
#
#     . bench/device.sh [WHEELS [MODEL_PARTS]] && python3 bench/device.py run --out OUT
#
# WHEELS is a folder of wheels: what Drivetrain needs (pyproject.toml) and the machine lacks, and hatchling with what it
# needs, for Drivetrain itself is built from the tree, so that its entry points are found. MODEL_PARTS is a folder with
# the quick-start model's file, whole or in parts named FILE.aa, FILE.ab, ... that may come one call at a time, and its
# checksum in SHA256. Once the file is complete, GOLDEN_MODEL names it.

_drivetrain_setup() {
    local wheels=${1:-.whl} parts=${2:-.smol} file
    local site=${BENCH_SITE:-/tmp/drivetrain-site} store=${BENCH_STORE:-/tmp/drivetrain-model}
    local pip="python3 -m pip --disable-pip-version-check install -q --no-index --no-deps --no-cache-dir --upgrade"
    pip="$pip --root-user-action ignore --target $site"
    if [ ! -e "$site/.wheels" ]; then
        $pip "$wheels"/*.whl || return 1
        touch "$site/.wheels"
    fi
    export PYTHONPATH="$site"
    # Whatever the tree has no more must not stay importable.
    rm -rf "$site"/drivetrain*
    $pip --no-build-isolation . || return 1
    mkdir -p "$store"
    [ ! -d "$parts" ] || cp -u "$parts"/* "$store/" || return 1
    if [ -e "$store/SHA256" ]; then
        file="$store/$(cut -d' ' -f3 "$store/SHA256")"
        [ -e "$file" ] || ! ls "$file".?? >/dev/null 2>&1 || cat "$file".?? >"$file"
        if (cd "$store" && sha256sum --check --status SHA256); then
            export GOLDEN_MODEL="$file"
        else
            rm -f "$file"
            echo "the quick-start model is not complete yet: $(ls "$store" | tr '\n' ' ')"
        fi
    fi
    python3 -c "from drivetrain_plugins.discovery import discover; print('backends:', *(b.spec.name for b in discover().found))"
}
_drivetrain_setup "$@"
