# fish completion for vmreplica; printed by: vmreplica completion fish
complete -c vmreplica -f
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a status -d 'Tell whether the VMs are protected, how far behind, and what to do'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a enable -d 'Put a VMs disks under replication'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a adopt -d 'Put the disks of a libvirt domain behind a tap, under replication'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a release -d 'Put them back without the tap, and end the replication'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a libvirt-hook -d 'Print the hook for libvirt, it checks domains at their start, and refuses migrations'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a initial -d 'Make the first copy, with live progress'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a import -d 'Bring a first copy into the replicas store, an export that came by courier, or a seed'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a get -d 'Print the settings of a VM or of all'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a set -d 'Change settings of a VM, or print them where none is given'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a suspend -d 'Stop sending'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a resume -d 'Go on after a suspend, an error, or with a resync'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a resync -d 'Plan a resync, watch it, look at past ones'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a resize -d 'Take over files that somebody made larger, comparing all'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a disk -d 'Add a disk to a replicated VM, remove or enlarge one'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a stop -d 'Cancel a resync or initial replication before its commit'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a verify -d 'Compare both sides at a cut while replication goes on'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a cut -d 'Take a cut now, by --consistent an application-consistent one'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a remove -d 'End the replication of a VM on this host'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a recover -d 'Rebuild the state of a VM in Error whose database is lost'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a measure -d 'Print the statistics of a VM'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a churn -d 'Tell what of the VMs disks is written most, or estimate it'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a metrics -d 'Print the agents metrics as Prometheus reads them'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a audit -d 'Print who ordered what, or check that record'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a events -d 'Print what happened, the newest last'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a points -d 'List the recovery points of a VM at the replica'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a point -d 'Name a recovery point, pin it, or no longer'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a prove -d 'Read a recovery point to its end and compare it with what a verify recorded of its cut'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a export -d 'Serve a recovery point of the replica over NBD, read-only or writable'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a unexport -d 'End the export of a recovery point'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a failover -d 'Promote the replica to be the VMs disks, test, undo or commit that, or prepare it at the primary'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a definition -d 'Print what the VM needs to start here, as of a recovery point'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a reverse -d 'Change the direction after a failover'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a resolve -d 'End a split brain, say which side counts'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a hrl -d 'Look into files of the replication log'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a pki -d 'Make and look at certificates'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a test-connection -d 'Try the primary agents way to a replica, step by step'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a doctor -d 'Look at all that replication depends on, and say what to do'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a config -d 'Check configuration files, and show what is in force'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a alarms -d 'Look at the alarms of this hosts agents, and test them'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a support-bundle -d 'Collect what somebody who helps needs, no secrets'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a watch-disks -d 'Tell the primary agent each minute who uses the VMs disks'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a setup -d 'Make this host ready for an agent'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a completion -d 'Print a script for the shells completion'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -a version -d 'Print the versions of the command and of the agents'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -l help -d 'show this help message and exit'
complete -c vmreplica -n 'not __fish_seen_subcommand_from status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version' -l version -d 'print the commands version and exit'
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
complete -c vmreplica -n '__fish_seen_subcommand_from enable' -l log-limit -d 'size of the log above which a resync is required, 10GiB' -x
complete -c vmreplica -n '__fish_seen_subcommand_from enable' -l block-device-policy -d 'when block devices are compared because the tap was stopped, after an unclean stop' -x -a 'compare trust strict'
complete -c vmreplica -n '__fish_seen_subcommand_from enable' -l hot-region-size -d 'size of a hot region, 1MiB to 64MiB' -x
complete -c vmreplica -n '__fish_seen_subcommand_from enable' -l hot-regions -d 'the most regions that are hot, which is what power loss leaves to compare' -x
complete -c vmreplica -n '__fish_seen_subcommand_from enable' -l uuid -d 'identity of the VM' -x
complete -c vmreplica -n '__fish_seen_subcommand_from enable' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from enable' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from adopt' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from adopt' -l connect -d 'connection of virsh' -x
complete -c vmreplica -n '__fish_seen_subcommand_from adopt' -l replica -d 'where the replica agent listens' -x
complete -c vmreplica -n '__fish_seen_subcommand_from adopt' -l disk -d 'disk of the domain, e.g. vda, that is replicated' -x
complete -c vmreplica -n '__fish_seen_subcommand_from adopt' -l exclude -d 'disk of the domain that stays as it is and is not replicated' -x
complete -c vmreplica -n '__fish_seen_subcommand_from adopt' -l interval -d 'time between two cuts, 30s, 5m, 15m or any from 1s' -x
complete -c vmreplica -n '__fish_seen_subcommand_from adopt' -l log-limit -d 'size of the log above which a resync is required, 10GiB' -x
complete -c vmreplica -n '__fish_seen_subcommand_from adopt' -l live -d 'the domain runs, copy its disks onto new raw images behind the tap, and switch it over'
complete -c vmreplica -n '__fish_seen_subcommand_from adopt' -l copy-to -d 'with --live, where the new images are made' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from adopt' -l start -d 'start the domain, and check how QEMU has its disks'
complete -c vmreplica -n '__fish_seen_subcommand_from adopt' -l check -d 'adopt nothing, check how the running domain has its disks from a tap, and set right what can be'
complete -c vmreplica -n '__fish_seen_subcommand_from adopt' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from adopt' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from release' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from release' -l connect -d 'connection of virsh' -x
complete -c vmreplica -n '__fish_seen_subcommand_from release' -l live -d 'the domain runs, copy its disks out of the tap into new raw images, and switch it over'
complete -c vmreplica -n '__fish_seen_subcommand_from release' -l copy-to -d 'with --live, where the new images are made' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from release' -l yes -d 'do it without asking'
complete -c vmreplica -n '__fish_seen_subcommand_from release' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from release' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from libvirt-hook' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from libvirt-hook' -l install -d 'write it to /etc/libvirt/hooks/qemu.d/vmreplica'
complete -c vmreplica -n '__fish_seen_subcommand_from initial' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from initial' -l at -d 'start it then, up to 7 days ahead, in the time zone of the primary, 02,00, 2026-11-28 02,00, 2026-11-28T02,00+01,00, +2h or +30m' -x
complete -c vmreplica -n '__fish_seen_subcommand_from initial' -l export -d 'write the copy into an empty folder of this host, on a medium say, for vmreplica import DIR at the replica' -x
complete -c vmreplica -n '__fish_seen_subcommand_from initial' -l use-seed -d 'only where a seed was imported at the replica, compare all of it, and send what differs'
complete -c vmreplica -n '__fish_seen_subcommand_from initial' -l no-wait -d 'return at once, rather than show the progress'
complete -c vmreplica -n '__fish_seen_subcommand_from initial' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from initial' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from initial' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from import' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from import' -l seed -d 'raw image on this host that is much like a disk of the VM, a restored backup, an older copy' -x
complete -c vmreplica -n '__fish_seen_subcommand_from import' -l move -d 'with --seed, the file itself becomes the disk, where it lies in the stores file system, and no copy'
complete -c vmreplica -n '__fish_seen_subcommand_from import' -l storage -d 'of an export, where the VM is kept, if it is new here and several [[authorize]] entries allow it' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from import' -l stop -d 'end the one that runs'
complete -c vmreplica -n '__fish_seen_subcommand_from import' -l no-wait -d 'return at once, rather than show the progress'
complete -c vmreplica -n '__fish_seen_subcommand_from import' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from import' -l socket -d 'socket of an agent' -r -F
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
complete -c vmreplica -n '__fish_seen_subcommand_from suspend' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from suspend' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from suspend' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from resume' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from resume' -l role -d 'which agent, where both on this host have the VM' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from resume' -l resynchronize -d 'compare the disks and send what differs'
complete -c vmreplica -n '__fish_seen_subcommand_from resume' -l at -d 'with --resynchronize, start it then, up to 7 days ahead, in the time zone of the primary, 02,00, 2026-11-28 02,00, 2026-11-28T02,00+01,00, +2h or +30m' -x
complete -c vmreplica -n '__fish_seen_subcommand_from resume' -l continue -d 'go on with a suspended compare from where it stood, and do nothing else'
complete -c vmreplica -n '__fish_seen_subcommand_from resume' -l no-wait -d 'return at once, rather than show the progress'
complete -c vmreplica -n '__fish_seen_subcommand_from resume' -l yes -d 'do it without asking'
complete -c vmreplica -n '__fish_seen_subcommand_from resume' -l json -d 'print JSON with raw numbers, units in the names'
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
complete -c vmreplica -n '__fish_seen_subcommand_from resize' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from resize' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from resize' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from disk; and not __fish_seen_subcommand_from add remove resize' -a add -d 'Replicate one more disk of a VM'
complete -c vmreplica -n '__fish_seen_subcommand_from disk; and not __fish_seen_subcommand_from add remove resize' -a remove -d 'Replicate a disk of a VM no longer'
complete -c vmreplica -n '__fish_seen_subcommand_from disk; and not __fish_seen_subcommand_from add remove resize' -a resize -d 'Enlarge a disk of a VM and its replica, without comparing it'
complete -c vmreplica -n '__fish_seen_subcommand_from disk; and not __fish_seen_subcommand_from add remove resize' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from disk; and __fish_seen_subcommand_from add' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from disk; and __fish_seen_subcommand_from add' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from disk; and __fish_seen_subcommand_from add' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from disk; and __fish_seen_subcommand_from add' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from disk; and __fish_seen_subcommand_from remove' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from disk; and __fish_seen_subcommand_from remove' -l exclude -d 'the VM keeps the disk, it stays on record as one that is not replicated'
complete -c vmreplica -n '__fish_seen_subcommand_from disk; and __fish_seen_subcommand_from remove' -l yes -d 'do it without asking'
complete -c vmreplica -n '__fish_seen_subcommand_from disk; and __fish_seen_subcommand_from remove' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from disk; and __fish_seen_subcommand_from remove' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from disk; and __fish_seen_subcommand_from remove' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from disk; and __fish_seen_subcommand_from resize' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from disk; and __fish_seen_subcommand_from resize' -l size -d 'its new size, for instance 80GiB' -x
complete -c vmreplica -n '__fish_seen_subcommand_from disk; and __fish_seen_subcommand_from resize' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from disk; and __fish_seen_subcommand_from resize' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from disk; and __fish_seen_subcommand_from resize' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from stop' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from stop' -l json -d 'print JSON with raw numbers, units in the names'
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
complete -c vmreplica -n '__fish_seen_subcommand_from cut' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from cut' -l consistent -d 'freeze the guest for it, as its setting consistency says, an application-consistent point'
complete -c vmreplica -n '__fish_seen_subcommand_from cut' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from cut' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from cut' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from remove' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from remove' -l role -d 'which agent, where both on this host have the VM' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from remove' -l yes -d 'do it without asking'
complete -c vmreplica -n '__fish_seen_subcommand_from remove' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from remove' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from remove' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from recover' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from recover' -l role -d 'which agent, where both on this host have the VM' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from recover' -l replica -d 'where the replica agent listens' -x
complete -c vmreplica -n '__fish_seen_subcommand_from recover' -l yes -d 'do it without asking'
complete -c vmreplica -n '__fish_seen_subcommand_from recover' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from recover' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from recover' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from measure' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from measure' -l role -d 'which agent, where both on this host have the VM' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from measure' -l reset -d 'begin a new monitoring interval, and so clear a Warning that rests on it'
complete -c vmreplica -n '__fish_seen_subcommand_from measure' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from measure' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from measure' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from churn' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from churn' -l top -d 'so many regions of each disk, up to 1024' -x
complete -c vmreplica -n '__fish_seen_subcommand_from churn' -l estimate -d 'read an image or block device twice, before it is replicated, and tell how much changed meanwhile' -x
complete -c vmreplica -n '__fish_seen_subcommand_from churn' -l for -d 'with --estimate, at least so long from one reading to the other' -x
complete -c vmreplica -n '__fish_seen_subcommand_from churn' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from churn' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from churn' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from metrics' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from metrics' -l role -d 'which agent, where both run on this host' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from metrics' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from audit' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from audit' -l role -d 'which agent, where both on this host have the VM' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from audit' -l since -d 'from then on, 2h or 7d ago, 2026-11-28 or 2026-11-28 02,00' -x
complete -c vmreplica -n '__fish_seen_subcommand_from audit' -l verify -d 'follow the chain of digests, and tell where the log was changed'
complete -c vmreplica -n '__fish_seen_subcommand_from audit' -l folder -d 'read the files in that folder, rather than ask the agents' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from audit' -l limit -d 'how many' -x
complete -c vmreplica -n '__fish_seen_subcommand_from audit' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from audit' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from audit' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from events' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from events' -l role -d 'which agent, where both on this host have the VM' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from events' -l vm -d 'the same as VM' -x -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from events' -l since -d 'not older than that, 2h' -x
complete -c vmreplica -n '__fish_seen_subcommand_from events' -l until -d 'not newer than that' -x
complete -c vmreplica -n '__fish_seen_subcommand_from events' -l id -d 'only events of that number or name, e.g. 29242 or resync_started' -x
complete -c vmreplica -n '__fish_seen_subcommand_from events' -l level -d 'only events that are at least so bad' -x -a 'info warning error'
complete -c vmreplica -n '__fish_seen_subcommand_from events' -l follow -d 'print what happens from now on as well, also after an agents restart'
complete -c vmreplica -n '__fish_seen_subcommand_from events' -l limit -d 'how many' -x
complete -c vmreplica -n '__fish_seen_subcommand_from events' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from events' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from events' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from points' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from points' -l at -d 'tell also which is the newest at or before a time, and the next after it, 2h' -x
complete -c vmreplica -n '__fish_seen_subcommand_from points' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from points' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from points' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from point' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from point' -l point -d 'which recovery point, EPOCH/CUT as points has it, a name that was given to it, or newest' -x
complete -c vmreplica -n '__fish_seen_subcommand_from point' -l at -d 'the newest one at or before a time, 2h' -x
complete -c vmreplica -n '__fish_seen_subcommand_from point' -l name -d 'give it a name, good wherever a point is named' -x
complete -c vmreplica -n '__fish_seen_subcommand_from point' -l no-name -d 'take its name away'
complete -c vmreplica -n '__fish_seen_subcommand_from point' -l pin -d 'keep it, whatever the rules say, until unpinned'
complete -c vmreplica -n '__fish_seen_subcommand_from point' -l unpin -d 'leave it to the rules again'
complete -c vmreplica -n '__fish_seen_subcommand_from point' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from point' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from point' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from prove' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from prove' -l point -d 'which recovery point, EPOCH/CUT as points has it, a name that was given to it, or newest' -x
complete -c vmreplica -n '__fish_seen_subcommand_from prove' -l at -d 'the newest one at or before a time, 2h' -x
complete -c vmreplica -n '__fish_seen_subcommand_from prove' -l stop -d 'end the one that runs'
complete -c vmreplica -n '__fish_seen_subcommand_from prove' -l no-wait -d 'return at once, rather than show the progress'
complete -c vmreplica -n '__fish_seen_subcommand_from prove' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from prove' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from prove' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from export' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from export' -l point -d 'which recovery point, EPOCH/CUT as points has it, a name that was given to it, or newest' -x
complete -c vmreplica -n '__fish_seen_subcommand_from export' -l at -d 'the newest one at or before a time, 2h' -x
complete -c vmreplica -n '__fish_seen_subcommand_from export' -l writable -d 'let clients write, what they write is kept beside the point, and deleted when the export is ended'
complete -c vmreplica -n '__fish_seen_subcommand_from export' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from export' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from export' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from unexport' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from unexport' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from unexport' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from unexport' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l prepare -d 'at the primary, stop the writes and bring the replica to the last one, so that nothing is lost'
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l test -d 'serve the point for a test, writable, while replication goes on'
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l undo -d 'go back to before the failover, what was written here since is dropped'
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l commit -d 'keep the failover for good, the other recovery points are deleted'
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l stop -d 'with --test, end it, and delete what was written to it'
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l point -d 'which recovery point' -x
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l at -d 'the newest one at or before a time, 2h' -x
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l shutdown -d 'with --prepare, first have libvirt ask the guest to shut down'
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l timeout -d 'with --shutdown, how long the guest may take' -x
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l prove -d 'with --prepare, once it is prepared, compare both sides disks at the last cut by their hashes'
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l abort -d 'with --prepare, take the preparation back'
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l force -d 'with --abort, also where the replica, which may be failed over, does not answer'
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l no-wait -d 'with --prepare, return at once, rather than show the progress'
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l yes -d 'do it without asking'
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from failover' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from definition' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from definition' -l point -d 'which recovery point, EPOCH/CUT as points has it, a name that was given to it, or newest' -x
complete -c vmreplica -n '__fish_seen_subcommand_from definition' -l at -d 'the newest one at or before a time, 2h' -x
complete -c vmreplica -n '__fish_seen_subcommand_from definition' -l output -d 'write it there, with the small files that go with it' -x
complete -c vmreplica -n '__fish_seen_subcommand_from definition' -l test -d 'for a test, "NAME - Test", with a UUID, MAC addresses and networks of its own'
complete -c vmreplica -n '__fish_seen_subcommand_from definition' -l define -d 'define it in libvirt'
complete -c vmreplica -n '__fish_seen_subcommand_from definition' -l security-info -d 'leave passwords in it'
complete -c vmreplica -n '__fish_seen_subcommand_from definition' -l as-it-is -d 'as it is at the primary, nothing is mapped, nothing left out'
complete -c vmreplica -n '__fish_seen_subcommand_from definition' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from definition' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from definition' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from reverse' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from reverse' -l replica -d 'where the new primarys replica is' -x
complete -c vmreplica -n '__fish_seen_subcommand_from reverse' -l yes -d 'do it without asking'
complete -c vmreplica -n '__fish_seen_subcommand_from reverse' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from reverse' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from reverse' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from resolve' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from resolve' -l keep -d 'whose writes count, the side that was the primary, or the one that the VM was failed over to' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from resolve' -l yes -d 'do it without asking'
complete -c vmreplica -n '__fish_seen_subcommand_from resolve' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from resolve' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from resolve' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from hrl; and not __fish_seen_subcommand_from dump check' -a dump -d 'Print the records of a log file'
complete -c vmreplica -n '__fish_seen_subcommand_from hrl; and not __fish_seen_subcommand_from dump check' -a check -d 'Verify a log file and tell how it ends'
complete -c vmreplica -n '__fish_seen_subcommand_from hrl; and not __fish_seen_subcommand_from dump check' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from hrl; and __fish_seen_subcommand_from dump' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from hrl; and __fish_seen_subcommand_from dump' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from hrl; and __fish_seen_subcommand_from dump' -F
complete -c vmreplica -n '__fish_seen_subcommand_from hrl; and __fish_seen_subcommand_from check' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from hrl; and __fish_seen_subcommand_from check' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from hrl; and __fish_seen_subcommand_from check' -F
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and not __fish_seen_subcommand_from init issue renew bundle show revoke' -a init -d 'Make a certificate authority'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and not __fish_seen_subcommand_from init issue renew bundle show revoke' -a issue -d 'Make key and certificate for hosts'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and not __fish_seen_subcommand_from init issue renew bundle show revoke' -a renew -d 'Issue anew, with the same names and key'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and not __fish_seen_subcommand_from init issue renew bundle show revoke' -a bundle -d 'Join authorities while one replaces another'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and not __fish_seen_subcommand_from init issue renew bundle show revoke' -a show -d 'Print what is in a certificate'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and not __fish_seen_subcommand_from init issue renew bundle show revoke' -a revoke -d 'Put it on the revocation list'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and not __fish_seen_subcommand_from init issue renew bundle show revoke' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from init' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from init' -l name -d 'common name of the authority' -x
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from init' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from init' -F
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from issue' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from issue' -l ca -d 'folder of the authority' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from issue' -l out -d 'gets a folder for each host' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from issue' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from renew' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from renew' -l ca -d 'folder of the authority' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from renew' -l out -d 'gets a folder for each host' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from renew' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from bundle' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from bundle' -l ca -d 'folder of an authority' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from bundle' -l out -d 'gets ca.pem and crl.pem, replacing such files' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from bundle' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from show' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from show' -F
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from revoke' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from revoke' -l ca -d 'folder of the authority' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from pki; and __fish_seen_subcommand_from revoke' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from test-connection' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from test-connection' -l timeout -d 'give up after' -x
complete -c vmreplica -n '__fish_seen_subcommand_from test-connection' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from test-connection' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from doctor' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from doctor' -l role -d 'which agent, where both on this host have the VM' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from doctor' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from doctor' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from doctor' -a '(vmreplica completion vms 2>/dev/null)'
complete -c vmreplica -n '__fish_seen_subcommand_from config; and not __fish_seen_subcommand_from check show' -a check -d 'Find every mistake in a configuration file'
complete -c vmreplica -n '__fish_seen_subcommand_from config; and not __fish_seen_subcommand_from check show' -a show -d 'Print what is in force, and what in the file waits'
complete -c vmreplica -n '__fish_seen_subcommand_from config; and not __fish_seen_subcommand_from check show' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from config; and __fish_seen_subcommand_from check' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from config; and __fish_seen_subcommand_from check' -l role -d 'whose it is, where its name does not tell' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from config; and __fish_seen_subcommand_from check' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from config; and __fish_seen_subcommand_from check' -F
complete -c vmreplica -n '__fish_seen_subcommand_from config; and __fish_seen_subcommand_from show' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from config; and __fish_seen_subcommand_from show' -l role -d 'only that agents' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from config; and __fish_seen_subcommand_from show' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from config; and __fish_seen_subcommand_from show' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from alarms; and not __fish_seen_subcommand_from show test' -a show -d 'Tell how each alarm does'
complete -c vmreplica -n '__fish_seen_subcommand_from alarms; and not __fish_seen_subcommand_from show test' -a test -d 'Send a test by an alarm, or by all'
complete -c vmreplica -n '__fish_seen_subcommand_from alarms; and not __fish_seen_subcommand_from show test' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from alarms; and __fish_seen_subcommand_from show' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from alarms; and __fish_seen_subcommand_from show' -l role -d 'only that agents' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from alarms; and __fish_seen_subcommand_from show' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from alarms; and __fish_seen_subcommand_from show' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from alarms; and __fish_seen_subcommand_from test' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from alarms; and __fish_seen_subcommand_from test' -l role -d 'only that agents' -x -a 'primary replica'
complete -c vmreplica -n '__fish_seen_subcommand_from alarms; and __fish_seen_subcommand_from test' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from alarms; and __fish_seen_subcommand_from test' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from support-bundle' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from support-bundle' -l out -d 'the archive' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from support-bundle' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from support-bundle' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from watch-disks' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from watch-disks' -l once -d 'look once, and end'
complete -c vmreplica -n '__fish_seen_subcommand_from watch-disks' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and not __fish_seen_subcommand_from primary replica' -a primary -d 'Make this host ready to replicate its VMs'
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and not __fish_seen_subcommand_from primary replica' -a replica -d 'Make this host ready to keep copies'
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and not __fish_seen_subcommand_from primary replica' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from primary' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from primary' -l pki -d 'this hosts folder as pki issue made it' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from primary' -l host -d 'name of this host' -x
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from primary' -l nbd-group -d 'group that QEMU runs as, e.g. kvm' -x
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from primary' -l config -d 'the configuration' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from primary' -l check -d 'only look, and tell what would be made'
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from primary' -l no-units -d 'leave systemds units alone'
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from primary' -l apparmor -d 'add the rule to libvirts AppArmor profiles that lets QEMU of every domain connect to the taps'
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from primary' -l root -d 'put this before all paths, for an image that is being built' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from primary' -l yes -d 'do it without asking'
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from primary' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from replica' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from replica' -l authorize -d 'the name in a primarys certificate, and the folder for its copies' -x
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from replica' -l listen -d 'where to listen' -x
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from replica' -l pki -d 'this hosts folder as pki issue made it' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from replica' -l host -d 'name of this host' -x
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from replica' -l nbd-group -d 'group that QEMU runs as, e.g. kvm' -x
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from replica' -l config -d 'the configuration' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from replica' -l check -d 'only look, and tell what would be made'
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from replica' -l no-units -d 'leave systemds units alone'
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from replica' -l apparmor -d 'add the rule to libvirts AppArmor profiles that lets QEMU of every domain connect to the taps'
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from replica' -l root -d 'put this before all paths, for an image that is being built' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from replica' -l yes -d 'do it without asking'
complete -c vmreplica -n '__fish_seen_subcommand_from setup; and __fish_seen_subcommand_from replica' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from completion' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from completion' -l socket -d 'socket of an agent' -r -F
complete -c vmreplica -n '__fish_seen_subcommand_from completion' -a 'bash zsh fish vms'
complete -c vmreplica -n '__fish_seen_subcommand_from version' -l help -d 'show this help message and exit'
complete -c vmreplica -n '__fish_seen_subcommand_from version' -l json -d 'print JSON with raw numbers, units in the names'
complete -c vmreplica -n '__fish_seen_subcommand_from version' -l socket -d 'socket of an agent' -r -F
