"""One command per experiment: data, model, training, table, picture."""
