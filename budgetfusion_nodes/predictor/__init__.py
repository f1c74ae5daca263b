"""What is predicted and fitted: features, network, planner, planner file, fit. PyTorch, no host."""
