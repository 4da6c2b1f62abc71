"""Everything that reaches into RecBole.

``register`` adds ours to its look-ups. ``patches`` repairs it for today's libraries, in ``patches_libraries``,
``patches_data`` and ``distributed``. ``trainer`` and ``resume`` train and continue, ``init_from`` starts on newer
data. ``checkpoint``, ``checkpoint_data``, ``restore`` and ``upgrade`` write and read checkpoints:
a file is read by ``checkpoint.load_checkpoint``, a model made of it by ``restore.restore``. ``ranking`` evaluates.
"""
