"""Evaluation: one module a task, each giving the cells of the tables (quality and cost of a method)."""
