# Completion of ephmon for fish.
set -l commands run pools headroom check check-config incidents incident

complete -c ephmon -f
complete -c ephmon -l config -r -F -d 'The configuration file'
complete -c ephmon -l help -d 'Print help'
complete -c ephmon -n "not __fish_seen_subcommand_from $commands" -l version -d 'Print the version'
complete -c ephmon -n "not __fish_seen_subcommand_from $commands" -a run -d 'Run the daemon in the foreground'
complete -c ephmon -n "not __fish_seen_subcommand_from $commands" -a pools -d 'Print the pools, the fullest first'
complete -c ephmon -n "not __fish_seen_subcommand_from $commands" -a headroom -d 'Tell what one pool has left'
complete -c ephmon -n "not __fish_seen_subcommand_from $commands" -a check -d 'Answer as a plugin of Nagios or Icinga'
complete -c ephmon -n "not __fish_seen_subcommand_from $commands" -a check-config -d 'Check a configuration file'
complete -c ephmon -n "not __fish_seen_subcommand_from $commands" -a incidents -d 'List the incidents that were kept'
complete -c ephmon -n "not __fish_seen_subcommand_from $commands" -a incident -d 'Print one incident'

complete -c ephmon -n '__fish_seen_subcommand_from run' -l listen -x -d 'Serve HTTP here'

complete -c ephmon -n '__fish_seen_subcommand_from pools' -l json -d 'Print JSON'
complete -c ephmon -n '__fish_seen_subcommand_from pools' -l top -x -d 'Print at most so many pools'
complete -c ephmon -n '__fish_seen_subcommand_from pools' -l destination -x -d 'Print only the pools toward it'
complete -c ephmon -n '__fish_seen_subcommand_from pools' -l owners -d 'Tell who holds the ports'
complete -c ephmon -n '__fish_seen_subcommand_from pools' -l no-probe -d 'Do not ask the kernel about ports in doubt'

complete -c ephmon -n '__fish_seen_subcommand_from headroom' -l from -x -d 'Instead of what routing chooses'
complete -c ephmon -n '__fish_seen_subcommand_from headroom' -l bind -x -d 'What bind(SOURCE, 0) has left'
complete -c ephmon -n '__fish_seen_subcommand_from headroom' -l udp -d 'count for UDP instead of TCP'
complete -c ephmon -n '__fish_seen_subcommand_from headroom' -l probe -d 'Ask the kernel about each port in doubt, or fail'
complete -c ephmon -n '__fish_seen_subcommand_from headroom' -l no-probe -d 'Do not ask the kernel about ports in doubt'
complete -c ephmon -n '__fish_seen_subcommand_from headroom' -l json -d 'Print JSON'

complete -c ephmon -n '__fish_seen_subcommand_from check' -l from -x -d 'Instead of what routing chooses'
complete -c ephmon -n '__fish_seen_subcommand_from check' -l warning -x -d 'The utilisation that is WARNING'
complete -c ephmon -n '__fish_seen_subcommand_from check' -l critical -x -d 'The utilisation that is CRITICAL'
complete -c ephmon -n '__fish_seen_subcommand_from check' -l no-probe -d 'Do not ask the kernel about ports in doubt'

complete -c ephmon -n '__fish_seen_subcommand_from check-config' -l pool -x -d 'Print the thresholds of this pool'
complete -c ephmon -n '__fish_seen_subcommand_from check-config' -F

complete -c ephmon -n '__fish_seen_subcommand_from incidents incident' -l json -d 'Print JSON'
complete -c ephmon -n '__fish_seen_subcommand_from incident' -F
