"""What `dysra train-backbone` can train, each as a learner of `infra.training.backbone_loop`."""
