"""Speed and memory side by side with peers: everyone the same weights, images and threads.

Start at `race`: it runs contenders (`contenders/`), each in a process of its own (`worker`), in
turns. `layers` shows where the fused chain's time goes, `table4` re-runs the paper's speed order,
`conversion` times the main job. What is found becomes a `document`, plain values for JSON, from
which tables and the `picture` are made.
"""
