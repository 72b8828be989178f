"""The ladder: the families in the order of their ideas, with a sentence, a picture and published figures for each."""
