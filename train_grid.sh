#!/usr/bin/env bash
# The reference run on raw images, end to end through a backbone:
#   DATASET=coco BACKBONE=detector SIMILARITY=vse_infty DATA_ROOT=/data bash train_grid.sh [further flags of train.py]
#   TEXT=bigru bash train_grid.sh       VSE∞ with a BiGRU; its vocabulary lies in $DATA_ROOT/vocab
# Choose GPUs with CUDA_VISIBLE_DEVICES; all visible ones are used. With few GPUs, `--accumulate 4` (or 8) keeps the
# batch of 128 with all its negatives.
set -euo pipefail
cd "$(dirname "$0")"

DATASET=${DATASET:-coco}                  # f30k, coco or the name of your own data
BACKBONE=${BACKBONE:-detector}            # detector | wsl | imagenet_res152
TEXT=${TEXT:-bert}                        # a text encoder: bert, bigru, ...
SIMILARITY=${SIMILARITY:-}                # a head: esl_a, esl_h, vse_infty, ...; without: esl_a, with a BiGRU vse_infty
DATA_ROOT=${DATA_ROOT:-data}              # holds f30k/, coco/ and weights/
BERT_PATH=${BERT_PATH:-bert-base-uncased} # a folder, or a hub name
# Weights of the backbone. Only the detector's have a default; wsl and imagenet_res152 download theirs without it.
WEIGHT_PATH=${WEIGHT_PATH:-}

case "$TEXT" in
    bigru) SIMILARITY=${SIMILARITY:-vse_infty} NAME=${SIMILARITY}_bigru ;;
    *) SIMILARITY=${SIMILARITY:-esl_a} NAME=$SIMILARITY ;;
esac
OUT=${OUT:-runs/${DATASET}_grid_${BACKBONE}_$NAME}
if [ "$SIMILARITY" = vse_infty ]; then EMBED_SIZE=1024; else EMBED_SIZE=512; fi
if [ "$BACKBONE" = detector ]; then WEIGHT_PATH=${WEIGHT_PATH:-$DATA_ROOT/weights/original_updown_backbone.pth}; fi

if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x .venv/bin/python ]; then PATH="$PWD/.venv/bin:$PATH"; fi
exec python train.py \
    --data_path "$DATA_ROOT/$DATASET" --data_name "$DATASET" --bert_path "$BERT_PATH" \
    --model_name "$OUT" --logger_name "$OUT/log" \
    --text_encoder "$TEXT" --weight_decay 1e-4 \
    --similarity "$SIMILARITY" --embed_size "$EMBED_SIZE" \
    --num_epochs 25 --lr_update 15 --batch_size 128 --learning_rate 5e-4 \
    --precomp_enc_type backbone --backbone_source "$BACKBONE" ${WEIGHT_PATH:+--backbone_path "$WEIGHT_PATH"} \
    --input_scale_factor 2.0 --backbone_lr_factor 0.01 \
    --vse_mean_warmup_epochs 1 --embedding_warmup_epochs 1 --backbone_warmup_epochs 0 \
    --save_step 500 --resume auto "$@"
