"""Training data made from question sets and news: pools of texts, triples, and their files."""
