"""`import`: the released files of VLAA-Thinking and ViLReward-73K as shards. Start reading at command.py."""
