"""The engines: each executes every rule it supports, from checked tensors to indices and scores."""
