"""Commands of ``python -m recbole_adrrec`` beside training: one module each, with ``main(argv)``."""
