"""Sentence forms of the newswire, one module a desk. All of them are our own."""
