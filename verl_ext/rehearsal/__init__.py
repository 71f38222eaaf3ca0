"""Rehearse an experiment on one machine before it takes a cluster: its own stages and rows, with stand-ins for size.

sizes        the experiment's configuration with toy sizes, and nothing else changed
data         problems of our own in the columns and files of each of its data sets
policy       a random policy of its model's architecture class and family, taught to answer in the asked form
tokenizers   byte-level tokenizers with each family's special tokens and classes
"""
