#!/usr/bin/env bash
# From nothing to recall tables, on a CPU: sample data, two ESL models, their ensemble, CxC, a grid model, a toy CLIP, and
# a page that shows what the two models get wrong.
# Installs into .venv (5.8 GB on disk; USE_ACTIVE_ENV=1 for the active environment) what test.sh has not installed yet.
# Everything else it writes lies in demo/ (200 MB; DEMO=folder for elsewhere).
set -euo pipefail
cd "$(dirname "$0")"
. .ci/environment.sh
environment requirements.txt

OUT=${DEMO:-demo}
DATA=$OUT/data
WORKERS=0
export TOKENIZERS_PARALLELISM=false
step() { printf '\n== %s\n' "$*"; }

step "Sample data: drawn scenes with five captions each, in $DATA"
python -m lib.tools.sample "$DATA" --datasets coco --images 1000 --seed 0

for head in esl_a esl_h; do
    step "Training $head on 1,000 images (regions of the drawn scenes, tiny BERT)"
    python train.py --data_path "$DATA/coco" --data_name coco --bert_path "$DATA/bert" --model_name "$OUT/$head" \
        --similarity "$head" --img_dim 256 --embed_size 256 --batch_size 64 --num_epochs 5 --lr_update 4 \
        --learning_rate 1e-3 --vse_mean_warmup_epochs 5 --workers "$WORKERS" --log_step 40 --seed 0
done

step "Evaluating both on the 200 images of test"
python eval.py --dataset coco --data_path "$DATA/coco" --bert_path "$DATA/bert" --split test --workers "$WORKERS" \
    --model_path "$OUT/esl_a/model_best.pth" "$OUT/esl_h/model_best.pth" --save_results

step "Ensemble of both"
python eval_ensemble.py "$OUT/esl_a/results_coco.npy" "$OUT/esl_h/results_coco.npy"

step "Is the difference of the two real, and which queries do they get wrong?"
python -m lib.tools.compare "$OUT/esl_a/results_coco.npy" "$OUT/esl_h/results_coco.npy"
python -m lib.tools.gallery "$OUT/esl_a/results_coco.npy" "$OUT/esl_h/results_coco.npy" --data_path "$DATA/coco" \
    --bert_path "$DATA/bert" --out "$OUT/gallery" --query t2i:0 --pictures 1

step "COCO's protocols and CxC on the 1,000 images of testall (five folds of 200)"
python eval.py --dataset coco --data_path "$DATA/coco" --bert_path "$DATA/bert" --workers "$WORKERS" \
    --model_path "$OUT/esl_h/model_best.pth" --evaluate_cxc

step "Grid model on the JPEGs: a tiny backbone with RANDOM weights and a few steps, to show the path, not the quality"
python -m lib.tools.sample "$DATA/grid" --datasets f30k --images 64 --dev_images 20 --test_images 20 --seed 1
python train.py --data_path "$DATA/grid/f30k" --data_name f30k --bert_path "$DATA/grid/bert" --model_name "$OUT/grid" \
    --precomp_enc_type backbone --backbone_source tiny --input_scale_factor 0.5 --similarity vse_infty --embed_size 64 \
    --batch_size 32 --num_epochs 2 --embedding_warmup_epochs 1 --workers "$WORKERS" --seed 0
python eval.py --dataset f30k --data_path "$DATA/grid/f30k" --bert_path "$DATA/grid/bert" --workers "$WORKERS" \
    --model_path "$OUT/grid/model_best.pth"

step "CLIP-based ESL-H on the JPEGs: a TOY, a tiny CLIP that knows nothing, two epochs, to show the path"
python train.py --data_path "$DATA/coco" --data_name coco --clip_path "$DATA/clip" --model_name "$OUT/clip" \
    --image_encoder clip --text_encoder clip --similarity esl_clip_h --embed_size 256 --loss contrastive \
    --optim transformers_adamw --schedule cosine --learning_rate 1e-3 --pretrained_lr 1e-3 --weight_decay 0.2 --grad_clip 1 \
    --embedding_warmup_epochs 0 --batch_size 64 --num_epochs 2 --workers "$WORKERS" --log_step 40 --seed 0
python eval.py --dataset coco --data_path "$DATA/coco" --clip_path "$DATA/clip" --split test --workers "$WORKERS" \
    --model_path "$OUT/clip/model_best.pth"

step "Done: checkpoints, saved matrices, figures as JSON and TensorBoard logs are in $OUT; what failed, as a page:"
echo "$OUT/gallery/index.html"
