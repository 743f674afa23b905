"""Sinter fuses what several language models know into one small model, by learning from their answers."""
