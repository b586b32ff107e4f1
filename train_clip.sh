#!/usr/bin/env bash
# The reference run of CLIP-based ESL on raw images, both of CLIP's towers trained:
#   DATASET=coco SIMILARITY=esl_clip_a DATA_ROOT=/data bash train_clip.sh [further flags of train.py]
# Choose GPUs with CUDA_VISIBLE_DEVICES; all visible ones are used. With little memory, `--accumulate 4` keeps the batch
# of 64 with all its negatives.
set -euo pipefail
cd "$(dirname "$0")"

DATASET=${DATASET:-coco}                                # f30k, coco or the name of your own data
SIMILARITY=${SIMILARITY:-esl_clip_h}                    # a head: esl_clip_h, esl_clip_a, cosine, ...
DATA_ROOT=${DATA_ROOT:-data}                            # holds f30k/, coco/, ...
CLIP_PATH=${CLIP_PATH:-openai/clip-vit-base-patch16}    # a folder, a hub name, or a file of OpenAI's names
EMBED_SIZE=${EMBED_SIZE:-512}                           # of CLIP's projection: 512 for ViT-B, 768 for ViT-L/14
OUT=${OUT:-runs/${DATASET}_clip_$SIMILARITY}

if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x .venv/bin/python ]; then PATH="$PWD/.venv/bin:$PATH"; fi
exec python train.py \
    --data_path "$DATA_ROOT/$DATASET" --data_name "$DATASET" --clip_path "$CLIP_PATH" \
    --model_name "$OUT" --logger_name "$OUT/log" \
    --image_encoder clip --text_encoder clip --similarity "$SIMILARITY" --embed_size "$EMBED_SIZE" \
    --loss contrastive --optim transformers_adamw --weight_decay 0.2 --grad_clip 1.0 \
    --learning_rate 3e-5 --pretrained_lr 1e-6 --schedule cosine --warmup 0.1 --embedding_warmup_epochs 0 \
    --num_epochs 15 --batch_size 64 --validations 4 --val_step 0 --seed 24 --save_step 500 --resume auto "$@"
