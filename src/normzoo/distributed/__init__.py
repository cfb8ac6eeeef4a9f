"""Training on several ranks: batch statistics and losses over all of them, and sharded parameters."""

from normzoo.distributed.ranks import mean_over_ranks as mean_over_ranks
from normzoo.distributed.shard import FSDP as FSDP
from normzoo.distributed.shard import shard as shard
from normzoo.distributed.shard import shard_network as shard_network
from normzoo.distributed.sync import SyncNorms as SyncNorms
