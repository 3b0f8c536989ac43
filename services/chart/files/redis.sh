exec valkey-server - <<END
dir /data
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
requirepass $REDIS_PASSWORD
user presswork_web on >$WEB_PASSWORD +ping +select +client|setinfo +set +lpush +ltrim +pexpire +multi +exec %W~presswork.* %W~presswork:* +eval +time +hmget +hset %RW~presswork:rate:*
user presswork_scheduler on >$SCHEDULER_PASSWORD +ping +select +client|setinfo +set +lpush +ltrim +pexpire +multi +exec %W~presswork.* %W~presswork:*
user presswork_worker on >$WORKER_PASSWORD +ping +select +client|setinfo +set +lpush +ltrim +pexpire +multi +exec %W~presswork.* %W~presswork:* +brpop +llen %RW~presswork.*
END
