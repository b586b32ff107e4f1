"""A data set to try everything on: drawn scenes in the layout of the real data (`python -m lib.tools.sample OUT`).

scenes.py decides what is in a picture and describes it, pictures.py draws it, boxes it and computes region features,
relatedness.py derives the CxC annotations, bert.py and clip.py make the tiny BERT and
the tiny CLIP, writing.py writes the files.
"""
