"""The cost of a model in detail: FLOPs, memory, latency, throughput, and the time of each stage of a prediction."""
