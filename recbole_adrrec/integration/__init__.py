"""Everything that reaches into RecBole.

``register`` adds ours to its look-ups; ``patches`` (with ``patches_libraries``, ``patches_data``, ``distributed``) repairs
it for today's libraries; ``trainer`` and ``resume`` train and continue; ``checkpoint``, ``checkpoint_data``, ``restore``
and ``upgrade`` write and read checkpoints; ``ranking`` evaluates.
"""
