# fish completion for vmreplica; printed by: vmreplica completion fish
complete -c vmreplica -f
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a status -d 'Tell whether the VMs are protected, how far behind, and what to do'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a enable -d 'Put a VMs disks under replication'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a initial -d 'Make the first copy, with live progress'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a get -d 'Print the settings of a VM or of all'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a set -d 'Change settings of a VM, or print them where none is given'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a suspend -d 'Stop sending'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a resume -d 'Go on after a suspend, an error, or with a resync'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a resync -d 'Plan a resync, watch it, look at past ones'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a resize -d 'Replicate disks that were made larger at their new size'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a stop -d 'Cancel a resync or initial replication before its commit'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a verify -d 'Compare both sides at a cut while replication goes on'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a remove -d 'End the replication of a VM on this host'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a recover -d 'Rebuild the state of a VM in Error whose database is lost'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a events -d 'Print what happened, the newest last'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a measure -d 'Print the statistics of a VM'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a points -d 'List the recovery points of a VM at the replica'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a export -d 'Serve a recovery point of the replica read-only over NBD'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a unexport -d 'End such an export'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a failover -d 'Promote the replica, its newest cut becomes the VMs disks'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a hrl -d 'Look into files of the replication log'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a pki -d 'Make and look at certificates'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a test-connection -d 'Try the primary agents way to a replica, step by step'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a completion -d 'Print a script for the shells completion'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -a version -d 'Print the versions of the command and of the agents'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -l help -d 'show this help message and exit'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable initial get set suspend resume resync resize stop verify remove recover events measure points export unexport failover hrl pki test-connection completion version' -l version -d 'print the commands version and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from status' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from status' -l role -d 'which agent, where both on this host have the VM' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from status' -l watch -d 'follow the work on VM to its end, or keep the view up to date'
complete -c vmreplica -n '__fish_seen_subcommand_from status' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from status' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from status' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from enable' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from enable' -l disk -d 'raw image or block device of the VM, and its name over NBD' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from enable' -l exclude -d 'disk of the VM that is not replicated, no tap serves it, and the replica does not have it' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from enable' -l replica -d 'where the replica agent listens' -x
complete -c vmreplica -n '__fish_seen_subcommand_from enable' -l interval -d 'time between two cuts, 30s, 5m, 15m or any from 1s' -x
complete -c vmreplica -n '__fish_seen_subcommand_from enable' -l log-limit -d 'size of the log above which a resync is required' -x
complete -c vmreplica -n '__fish_seen_subcommand_from enable' -l block-device-policy -d 'when block devices are compared because the tap was stopped, after an unclean stop' -x -a 'compare trust strict'
complete -c vmreplica -n '__fish_seen_subcommand_from enable' -l hot-region-size -d 'size of a hot region, 1MiB to 64MiB' -x
complete -c vmreplica -n '__fish_seen_subcommand_from enable' -l hot-regions -d 'the most regions that are hot, what power loss leaves to compare' -x
complete -c vmreplica -n '__fish_seen_subcommand_from enable' -l uuid -d 'identity of the VM' -x
complete -c vmreplica -n '__fish_seen_subcommand_from enable' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from enable' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from initial' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from initial' -l no-wait -d 'return at once, rather than show the progress'
complete -c vmreplica -n '__fish_seen_subcommand_from initial' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from initial' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from get' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from get' -l role -d 'which agent, where both on this host have the VM' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from get' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from get' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from get' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from set' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from set' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from set' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from set' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from suspend' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from suspend' -l role -d 'which agent, where both on this host have the VM' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from suspend' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from suspend' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from resume' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from resume' -l role -d 'which agent, where both on this host have the VM' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from resume' -l resynchronize -d 'compare the disks and send what differs'
complete -c vmreplica -n '__fish_seen_subcommand_from resume' -l at -d 'with --resynchronize, start it then, up to 7 days ahead, in the time zone of the primary, 02,00, 2026-11-28 02,00, 2026-11-28T02,00+01,00, +2h or +30m' -x
complete -c vmreplica -n '__fish_seen_subcommand_from resume' -l continue -d 'go on with a suspended compare from where it stood, and do nothing else'
complete -c vmreplica -n '__fish_seen_subcommand_from resume' -l no-wait -d 'return at once, rather than show the progress'
complete -c vmreplica -n '__fish_seen_subcommand_from resume' -l yes -d 'do it without asking'
complete -c vmreplica -n '__fish_seen_subcommand_from resume' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from resume' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and not __fish_seen_subcommand_from plan show history watch' -a plan -d 'Tell what a resync would read, send and take if it began now'
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and not __fish_seen_subcommand_from plan show history watch' -a show -d 'Tell why one is required, and all about the open and the last one'
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and not __fish_seen_subcommand_from plan show history watch' -a history -d 'List the resyncs on record, with forecast and outcome'
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and not __fish_seen_subcommand_from plan show history watch' -a watch -d 'Follow the one that runs, with a strip of each disk'
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and not __fish_seen_subcommand_from plan show history watch' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and __fish_seen_subcommand_from plan' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and __fish_seen_subcommand_from plan' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and __fish_seen_subcommand_from plan' -l sample -d 'measure on a sample, though past runs tell a rate'
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and __fish_seen_subcommand_from plan' -l blocks -d 'random blocks that are compared with the replica, up to 4096' -x
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and __fish_seen_subcommand_from plan' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and __fish_seen_subcommand_from plan' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and __fish_seen_subcommand_from show' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and __fish_seen_subcommand_from show' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and __fish_seen_subcommand_from show' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and __fish_seen_subcommand_from show' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and __fish_seen_subcommand_from history' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and __fish_seen_subcommand_from history' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and __fish_seen_subcommand_from history' -l limit -d 'how many' -x
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and __fish_seen_subcommand_from history' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and __fish_seen_subcommand_from history' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and __fish_seen_subcommand_from watch' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and __fish_seen_subcommand_from watch' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and __fish_seen_subcommand_from watch' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from resync; and __fish_seen_subcommand_from watch' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from resize' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from resize' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from resize' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from stop' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from stop' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from stop' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from verify' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from verify' -l at -d 'start it then, up to 7 days ahead, in the time zone of the primary, 02,00, 2026-11-28 02,00, 2026-11-28T02,00+01,00, +2h or +30m' -x
complete -c vmreplica -n '__fish_seen_subcommand_from verify' -l repair -d 'send again what differs, and compare that once more'
complete -c vmreplica -n '__fish_seen_subcommand_from verify' -l stop -d 'end the one that runs'
complete -c vmreplica -n '__fish_seen_subcommand_from verify' -l no-wait -d 'return at once, rather than show the progress'
complete -c vmreplica -n '__fish_seen_subcommand_from verify' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from verify' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from verify' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from remove' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from remove' -l role -d 'which agent, where both on this host have the VM' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from remove' -l yes -d 'do it without asking'
complete -c vmreplica -n '__fish_seen_subcommand_from remove' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from remove' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from recover' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from recover' -l role -d 'which agent, where both on this host have the VM' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from recover' -l replica -d 'where the replica agent listens' -x
complete -c vmreplica -n '__fish_seen_subcommand_from recover' -l yes -d 'do it without asking'
complete -c vmreplica -n '__fish_seen_subcommand_from recover' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from recover' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from events' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from events' -l role -d 'which agent, where both on this host have the VM' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from events' -l limit -d 'how many' -x
complete -c vmreplica -n '__fish_seen_subcommand_from events' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from events' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from events' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from measure' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from measure' -l role -d 'which agent, where both on this host have the VM' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from measure' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from measure' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from measure' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from points' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from points' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from points' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from points' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from export' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from export' -l point -d 'which recovery point, as points names it' -x
complete -c vmreplica -n '__fish_seen_subcommand_from export' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from export' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from export' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from unexport' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from unexport' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from unexport' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l yes -d 'do it without asking'
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from hrl; and not __fish_seen_subcommand_from dump check' -a dump -d 'Print the records of a log file'
complete -c vmreplica -n '__fish_seen_subcommand_from hrl; and not __fish_seen_subcommand_from dump check' -a check -d 'Verify a log file and tell how it ends'
complete -c vmreplica -n '__fish_seen_subcommand_from hrl; and not __fish_seen_subcommand_from dump check' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from hrl; and __fish_seen_subcommand_from dump' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from hrl; and __fish_seen_subcommand_from dump' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from hrl; and __fish_seen_subcommand_from dump' -F
complete -c vmreplica -n '__fish_seen_subcommand_from hrl; and __fish_seen_subcommand_from check' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from hrl; and __fish_seen_subcommand_from check' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from hrl; and __fish_seen_subcommand_from check' -F
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and not __fish_seen_subcommand_from init issue show revoke' -a init -d 'Make a certificate authority'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and not __fish_seen_subcommand_from init issue show revoke' -a issue -d 'Make key and certificate for hosts'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and not __fish_seen_subcommand_from init issue show revoke' -a show -d 'Print what is in a certificate'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and not __fish_seen_subcommand_from init issue show revoke' -a revoke -d 'Put it on the revocation list'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and not __fish_seen_subcommand_from init issue show revoke' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from init' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from init' -l name -d 'common name of the authority' -x
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from init' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from init' -F
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from issue' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from issue' -l ca -d 'folder of the authority' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from issue' -l out -d 'gets a folder for each host' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from issue' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from show' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from show' -F
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from revoke' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from revoke' -l ca -d 'folder of the authority' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from test-connection' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from test-connection' -l timeout -d 'give up after' -x
complete -c vmreplica -n '__fish_seen_subcommand_from test-connection' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from test-connection' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from completion' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from completion' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish vms'
complete -c vmreplica -n '__fish_seen_subcommand_from version' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from version' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from version' -l socket -d 'socket of an agent' -r -F
