"""Which training examples made a prediction: scores of every example, and the check by training without some.

- `attribution`: Hypergradients with regard to the weight of every training example, through all of training.
- `base`: What an attribution is, and training on weighted examples.
- `datamodeling`: The linear datamodeling score: predicted against true changes over random subsets.
- `influence`: Influence functions: the implicit hypergradients of the weights of examples.
- `retraining`: Training again on weighted examples, without each example in turn, and on random subsets.
- `tracing`: Gradient tracing: products of gradients over the checkpoints of one run.
"""
