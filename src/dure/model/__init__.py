"""The vocabulary: values every room shares. Imports nothing of ours."""
