#!/usr/bin/env bash
# The reference run on precomputed region features:
#   DATASET=coco SIMILARITY=esl_h DATA_ROOT=/data bash train_region.sh [further flags of train.py]
#   TEXT=bigru bash train_region.sh     VSE∞ with a BiGRU; its vocabulary lies in $DATA_ROOT/vocab
# Choose GPUs with CUDA_VISIBLE_DEVICES; all visible ones are used.
set -euo pipefail
cd "$(dirname "$0")"

DATASET=${DATASET:-f30k}                  # f30k, coco or the name of your own data
TEXT=${TEXT:-bert}                        # a text encoder: bert, bigru, ...
SIMILARITY=${SIMILARITY:-}                # a head: esl_a, esl_h, vse_infty, ...; without: esl_a, with a BiGRU vse_infty
DATA_ROOT=${DATA_ROOT:-data}              # holds f30k/, coco/, ...
BERT_PATH=${BERT_PATH:-bert-base-uncased} # a folder, or a hub name

case "$TEXT" in
    bigru) SIMILARITY=${SIMILARITY:-vse_infty} NAME=${SIMILARITY}_bigru WEIGHT_DECAY=0.01 ;;
    *) SIMILARITY=${SIMILARITY:-esl_a} NAME=$SIMILARITY WEIGHT_DECAY=1e-4 ;;
esac
OUT=${OUT:-runs/${DATASET}_region_$NAME}
case "$DATASET" in
    coco) EPOCHS=20 LR_UPDATE=10 ;;
    *) EPOCHS=30 LR_UPDATE=15 ;;
esac
case "$SIMILARITY" in
    vse_infty) EMBED_SIZE=1024 EPOCHS=25 LR_UPDATE=15 ;;
    *) EMBED_SIZE=512 ;;
esac
if [ "$TEXT" = bigru ]; then EPOCHS=25 LR_UPDATE=15; fi

if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x .venv/bin/python ]; then PATH="$PWD/.venv/bin:$PATH"; fi
exec python train.py \
    --data_path "$DATA_ROOT/$DATASET" --data_name "$DATASET" --bert_path "$BERT_PATH" \
    --model_name "$OUT" --logger_name "$OUT/log" \
    --text_encoder "$TEXT" --weight_decay "$WEIGHT_DECAY" \
    --similarity "$SIMILARITY" --embed_size "$EMBED_SIZE" \
    --num_epochs "$EPOCHS" --lr_update "$LR_UPDATE" --batch_size 128 --learning_rate 5e-4 \
    --vse_mean_warmup_epochs 1 --precomp_enc_type basic --save_step 500 --resume auto "$@"
