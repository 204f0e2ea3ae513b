# Completion of ephmon for bash.

_ephmon() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command='' words index
    for ((index = 1; index < COMP_CWORD; index++)); do
        case ${COMP_WORDS[index]} in
            --config) ((index++)) ;;
            -*) ;;
            *)
                command=${COMP_WORDS[index]}
                break
                ;;
        esac
    done
    COMPREPLY=()
    case $previous in
        --config)
            compopt -o filenames
            mapfile -t COMPREPLY < <(compgen -f -- "$current")
            return
            ;;
        --listen | --top | --destination | --from | --bind | --warning | --critical | --pool) return ;;
    esac
    case $command in
        '') words='run pools headroom check check-config incidents incident --config --version --help' ;;
        run) words='--config --listen --help' ;;
        pools) words='--config --json --top --destination --owners --no-probe --help' ;;
        headroom) words='--config --from --bind --udp --probe --no-probe --json --help' ;;
        check) words='--config --from --warning --critical --no-probe --help' ;;
        check-config) words='--config --pool --help' ;;
        incidents | incident) words='--config --json --help' ;;
        *) return ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
    if [[ $command == @(check-config|incident) && $current != -* ]]; then
        compopt -o filenames
        mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$current")
    fi
}

complete -F _ephmon ephmon
