#!/usr/bin/env bash
# The reference run on raw images, end to end through a backbone:
#   DATASET=coco BACKBONE=detector SIMILARITY=vse_infty DATA_ROOT=/data bash train_grid.sh [further flags of train.py]
#   TEXT=bigru bash train_grid.sh       VSE∞ with a BiGRU; its vocabulary lies in $DATA_ROOT/vocab
# Choose GPUs with CUDA_VISIBLE_DEVICES; all visible ones are used. With few GPUs, `--accumulate 4` (or 8) keeps the
# batch of 128 with all its negatives.
set -euo pipefail
cd "$(dirname "$0")"

DATASET=${DATASET:-coco}                  # f30k | coco
BACKBONE=${BACKBONE:-detector}            # detector | wsl | imagenet_res152
TEXT=${TEXT:-bert}                        # bert | bigru
SIMILARITY=${SIMILARITY:-}                # esl_a | esl_h | vse_infty; without: esl_a, with a BiGRU vse_infty
DATA_ROOT=${DATA_ROOT:-data}              # holds f30k/, coco/ and weights/
BERT_PATH=${BERT_PATH:-bert-base-uncased} # a folder, or a hub name
# Weights of the backbone. Only the detector's have a default; wsl and imagenet_res152 download theirs without it.
WEIGHT_PATH=${WEIGHT_PATH:-}

case "$TEXT" in
    bert) SIMILARITY=${SIMILARITY:-esl_a} NAME=$SIMILARITY ;;
    bigru) SIMILARITY=${SIMILARITY:-vse_infty} NAME=${SIMILARITY}_bigru ;;
    *) echo "error: TEXT is '$TEXT', expected bert or bigru" >&2; exit 2 ;;
esac
OUT=${OUT:-runs/${DATASET}_grid_${BACKBONE}_$NAME}
case "$DATASET" in
    f30k | coco) ;;
    *) echo "error: DATASET is '$DATASET', expected f30k or coco" >&2; exit 2 ;;
esac
case "$SIMILARITY" in
    esl_a | esl_h) EMBED_SIZE=512 ;;
    vse_infty) EMBED_SIZE=1024 ;;
    *) echo "error: SIMILARITY is '$SIMILARITY', expected esl_a, esl_h or vse_infty" >&2; exit 2 ;;
esac
case "$BACKBONE" in
    detector) WEIGHT_PATH=${WEIGHT_PATH:-$DATA_ROOT/weights/original_updown_backbone.pth} ;;
    wsl | imagenet_res152) ;;
    *) echo "error: BACKBONE is '$BACKBONE', expected detector, wsl or imagenet_res152" >&2; exit 2 ;;
esac

if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x .venv/bin/python ]; then PATH="$PWD/.venv/bin:$PATH"; fi
exec python train.py \
    --data_path "$DATA_ROOT/$DATASET" --data_name "$DATASET" --bert_path "$BERT_PATH" \
    --model_name "$OUT" --logger_name "$OUT/log" \
    --text_encoder "$TEXT" --weight_decay 1e-4 \
    --similarity "$SIMILARITY" --embed_size "$EMBED_SIZE" --kernel_size 2 \
    --num_epochs 25 --lr_update 15 --batch_size 128 --learning_rate 5e-4 \
    --precomp_enc_type backbone --backbone_source "$BACKBONE" ${WEIGHT_PATH:+--backbone_path "$WEIGHT_PATH"} \
    --input_scale_factor 2.0 --backbone_lr_factor 0.01 \
    --vse_mean_warmup_epochs 1 --embedding_warmup_epochs 1 --backbone_warmup_epochs 0 "$@"
