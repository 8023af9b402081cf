# bash completion for vmreplica; printed by: vmreplica completion bash
_vmreplica_vms() {
    # Names come from other hosts: compgen -W would expand them, and run what is in them.
    local name
    while IFS= read -r name; do
        [[ $name == "$1"* ]] && COMPREPLY+=("$(printf %q "$name")")
    done < <(vmreplica completion vms 2>/dev/null)
}
_vmreplica() {
    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}"
    local verb="" word
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$verb $word" in
            ' status' | ' enable' | ' adopt' | ' release' | ' libvirt-hook' | ' initial' | ' import' | ' get' | ' set' | ' suspend' | ' resume' | ' resync' | 'resync plan' | 'resync show' | 'resync history' | 'resync watch' | ' resize' | ' disk' | 'disk add' | 'disk remove' | 'disk resize' | ' stop' | ' verify' | ' cut' | ' remove' | ' recover' | ' measure' | ' churn' | ' metrics' | ' audit' | ' events' | ' points' | ' point' | ' prove' | ' export' | ' unexport' | ' failover' | ' definition' | ' reverse' | ' resolve' | ' hrl' | 'hrl dump' | 'hrl check' | ' pki' | 'pki init' | 'pki issue' | 'pki renew' | 'pki bundle' | 'pki show' | 'pki revoke' | ' test-connection' | ' doctor' | ' config' | 'config check' | 'config show' | ' alarms' | 'alarms show' | 'alarms test' | ' support-bundle' | ' watch-disks' | ' setup' | 'setup primary' | 'setup replica' | ' completion' | ' version') verb="${verb:+$verb }$word" ;;
        esac
    done
    COMPREPLY=()
    case "$verb:$previous" in
        'status:--role') mapfile -t COMPREPLY < <(compgen -W "primary replica" -- "$current"); return ;;
        'status:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'enable:--disk') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'enable:--exclude') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'enable:--replica') :; return ;;
        'enable:--interval') :; return ;;
        'enable:--log-limit') :; return ;;
        'enable:--block-device-policy') mapfile -t COMPREPLY < <(compgen -W "compare trust strict" -- "$current"); return ;;
        'enable:--hot-region-size') :; return ;;
        'enable:--hot-regions') :; return ;;
        'enable:--uuid') :; return ;;
        'enable:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'adopt:--connect') :; return ;;
        'adopt:--replica') :; return ;;
        'adopt:--disk') :; return ;;
        'adopt:--exclude') :; return ;;
        'adopt:--interval') :; return ;;
        'adopt:--log-limit') :; return ;;
        'adopt:--copy-to') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'adopt:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'release:--connect') :; return ;;
        'release:--copy-to') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'release:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'initial:--at') :; return ;;
        'initial:--export') :; return ;;
        'initial:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'import:--seed') :; return ;;
        'import:--storage') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'import:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'get:--role') mapfile -t COMPREPLY < <(compgen -W "primary replica" -- "$current"); return ;;
        'get:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'set:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'suspend:--role') mapfile -t COMPREPLY < <(compgen -W "primary replica" -- "$current"); return ;;
        'suspend:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'resume:--role') mapfile -t COMPREPLY < <(compgen -W "primary replica" -- "$current"); return ;;
        'resume:--at') :; return ;;
        'resume:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'resync plan:--blocks') :; return ;;
        'resync plan:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'resync show:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'resync history:--limit') :; return ;;
        'resync history:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'resync watch:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'resize:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'disk add:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'disk remove:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'disk resize:--size') :; return ;;
        'disk resize:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'stop:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'verify:--at') :; return ;;
        'verify:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'cut:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'remove:--role') mapfile -t COMPREPLY < <(compgen -W "primary replica" -- "$current"); return ;;
        'remove:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'recover:--role') mapfile -t COMPREPLY < <(compgen -W "primary replica" -- "$current"); return ;;
        'recover:--replica') :; return ;;
        'recover:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'measure:--role') mapfile -t COMPREPLY < <(compgen -W "primary replica" -- "$current"); return ;;
        'measure:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'churn:--top') :; return ;;
        'churn:--estimate') :; return ;;
        'churn:--for') :; return ;;
        'churn:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'metrics:--role') mapfile -t COMPREPLY < <(compgen -W "primary replica" -- "$current"); return ;;
        'metrics:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'audit:--role') mapfile -t COMPREPLY < <(compgen -W "primary replica" -- "$current"); return ;;
        'audit:--since') :; return ;;
        'audit:--folder') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'audit:--limit') :; return ;;
        'audit:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'events:--role') mapfile -t COMPREPLY < <(compgen -W "primary replica" -- "$current"); return ;;
        'events:--vm') _vmreplica_vms "$current"; return ;;
        'events:--since') :; return ;;
        'events:--until') :; return ;;
        'events:--id') :; return ;;
        'events:--level') mapfile -t COMPREPLY < <(compgen -W "info warning error" -- "$current"); return ;;
        'events:--limit') :; return ;;
        'events:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'points:--at') :; return ;;
        'points:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'point:--point') :; return ;;
        'point:--at') :; return ;;
        'point:--name') :; return ;;
        'point:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'prove:--point') :; return ;;
        'prove:--at') :; return ;;
        'prove:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'export:--point') :; return ;;
        'export:--at') :; return ;;
        'export:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'unexport:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'failover:--point') :; return ;;
        'failover:--at') :; return ;;
        'failover:--timeout') :; return ;;
        'failover:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'definition:--point') :; return ;;
        'definition:--at') :; return ;;
        'definition:--output') :; return ;;
        'definition:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'reverse:--replica') :; return ;;
        'reverse:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'resolve:--keep') mapfile -t COMPREPLY < <(compgen -W "primary replica" -- "$current"); return ;;
        'resolve:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'pki init:--name') :; return ;;
        'pki issue:--ca') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'pki issue:--out') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'pki renew:--ca') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'pki renew:--out') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'pki bundle:--ca') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'pki bundle:--out') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'pki revoke:--ca') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'test-connection:--timeout') :; return ;;
        'test-connection:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'doctor:--role') mapfile -t COMPREPLY < <(compgen -W "primary replica" -- "$current"); return ;;
        'doctor:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'config check:--role') mapfile -t COMPREPLY < <(compgen -W "primary replica" -- "$current"); return ;;
        'config show:--role') mapfile -t COMPREPLY < <(compgen -W "primary replica" -- "$current"); return ;;
        'config show:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'alarms show:--role') mapfile -t COMPREPLY < <(compgen -W "primary replica" -- "$current"); return ;;
        'alarms show:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'alarms test:--role') mapfile -t COMPREPLY < <(compgen -W "primary replica" -- "$current"); return ;;
        'alarms test:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'support-bundle:--out') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'support-bundle:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'watch-disks:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'setup primary:--pki') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'setup primary:--host') :; return ;;
        'setup primary:--nbd-group') :; return ;;
        'setup primary:--config') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'setup primary:--root') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'setup replica:--authorize') :; return ;;
        'setup replica:--listen') :; return ;;
        'setup replica:--pki') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'setup replica:--host') :; return ;;
        'setup replica:--nbd-group') :; return ;;
        'setup replica:--config') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'setup replica:--root') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'completion:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
        'version:--socket') compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current"); return ;;
    esac
    case "$verb" in
        '')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version --help --version" -- "$current"); return; }
            mapfile -t COMPREPLY < <(compgen -W "status enable adopt release libvirt-hook initial import get set suspend resume resync resize disk stop verify cut remove recover measure churn metrics audit events points point prove export unexport failover definition reverse resolve hrl pki test-connection doctor config alarms support-bundle watch-disks setup completion version" -- "$current") ;;
        'status')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --role --watch --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'enable')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --disk --exclude --replica --interval --log-limit --block-device-policy --hot-region-size --hot-regions --uuid --json --socket" -- "$current"); return; }
            : ;;
        'adopt')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --connect --replica --disk --exclude --interval --log-limit --live --copy-to --start --check --json --socket" -- "$current"); return; }
            : ;;
        'release')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --connect --live --copy-to --yes --json --socket" -- "$current"); return; }
            : ;;
        'libvirt-hook')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --install" -- "$current"); return; }
            : ;;
        'initial')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --at --export --use-seed --no-wait --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'import')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --seed --move --storage --stop --no-wait --json --socket" -- "$current"); return; }
            : ;;
        'get')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --role --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'set')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'suspend')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --role --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'resume')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --role --resynchronize --at --continue --no-wait --yes --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'resync')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "plan show history watch --help" -- "$current"); return; }
            mapfile -t COMPREPLY < <(compgen -W "plan show history watch" -- "$current") ;;
        'resync plan')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --json --sample --blocks --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'resync show')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'resync history')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --json --limit --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'resync watch')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'resize')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'disk')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "add remove resize --help" -- "$current"); return; }
            mapfile -t COMPREPLY < <(compgen -W "add remove resize" -- "$current") ;;
        'disk add')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'disk remove')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --exclude --yes --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'disk resize')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --size --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'stop')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'verify')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --at --repair --stop --no-wait --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'cut')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --consistent --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'remove')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --role --yes --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'recover')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --role --replica --yes --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'measure')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --role --reset --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'churn')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --top --estimate --for --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'metrics')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --role --socket" -- "$current"); return; }
            : ;;
        'audit')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --role --since --verify --folder --limit --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'events')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --role --vm --since --until --id --level --follow --limit --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'points')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --at --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'point')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --point --at --name --no-name --pin --unpin --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'prove')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --point --at --stop --no-wait --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'export')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --point --at --writable --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'unexport')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'failover')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --prepare --test --undo --commit --stop --point --at --shutdown --timeout --prove --abort --force --no-wait --yes --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'definition')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --point --at --output --test --define --security-info --as-it-is --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'reverse')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --replica --yes --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'resolve')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --keep --yes --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'hrl')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "dump check --help" -- "$current"); return; }
            mapfile -t COMPREPLY < <(compgen -W "dump check" -- "$current") ;;
        'hrl dump')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --json" -- "$current"); return; }
            compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
        'hrl check')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --json" -- "$current"); return; }
            compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
        'pki')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "init issue renew bundle show revoke --help" -- "$current"); return; }
            mapfile -t COMPREPLY < <(compgen -W "init issue renew bundle show revoke" -- "$current") ;;
        'pki init')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --name --json" -- "$current"); return; }
            compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
        'pki issue')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --ca --out --json" -- "$current"); return; }
            : ;;
        'pki renew')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --ca --out --json" -- "$current"); return; }
            : ;;
        'pki bundle')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --ca --out --json" -- "$current"); return; }
            : ;;
        'pki show')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help" -- "$current"); return; }
            compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
        'pki revoke')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --ca --json" -- "$current"); return; }
            : ;;
        'test-connection')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --timeout --json --socket" -- "$current"); return; }
            : ;;
        'doctor')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --role --json --socket" -- "$current"); return; }
            _vmreplica_vms "$current" ;;
        'config')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "check show --help" -- "$current"); return; }
            mapfile -t COMPREPLY < <(compgen -W "check show" -- "$current") ;;
        'config check')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --role --json" -- "$current"); return; }
            compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
        'config show')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --role --json --socket" -- "$current"); return; }
            : ;;
        'alarms')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "show test --help" -- "$current"); return; }
            mapfile -t COMPREPLY < <(compgen -W "show test" -- "$current") ;;
        'alarms show')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --role --json --socket" -- "$current"); return; }
            : ;;
        'alarms test')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --role --json --socket" -- "$current"); return; }
            : ;;
        'support-bundle')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --out --json --socket" -- "$current"); return; }
            : ;;
        'watch-disks')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --once --socket" -- "$current"); return; }
            : ;;
        'setup')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "primary replica --help" -- "$current"); return; }
            mapfile -t COMPREPLY < <(compgen -W "primary replica" -- "$current") ;;
        'setup primary')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --pki --host --nbd-group --config --check --no-units --apparmor --root --yes --json" -- "$current"); return; }
            : ;;
        'setup replica')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --authorize --listen --pki --host --nbd-group --config --check --no-units --apparmor --root --yes --json" -- "$current"); return; }
            : ;;
        'completion')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --socket" -- "$current"); return; }
            mapfile -t COMPREPLY < <(compgen -W "bash zsh fish vms" -- "$current") ;;
        'version')
            [[ $current == -* ]] && { mapfile -t COMPREPLY < <(compgen -W "--help --json --socket" -- "$current"); return; }
            : ;;
    esac
}
complete -F _vmreplica vmreplica
