"""Other unsupervised methods, each as its paper defines it: one file a method, each a `Scorer`."""
