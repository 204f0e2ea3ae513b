"""The row of the host's dashboard that is about ephmon itself."""

from __future__ import annotations

from dashboards import Row
from panels import YES_OR_NO, Query, of_ephmon, series, states, table

HEALTH = Row(
    "ephmon itself",
    (
        states(
            "What can be read",
            "Whether polls succeed, whether the configuration was taken over, and which sources of facts can be used.",
            Query("ephmon_poll_success", "{{instance}} polls"),
            Query("ephmon_config_last_reload_successful", "{{instance}} configuration"),
            Query("ephmon_collector_available", "{{instance}} {{collector}}"),
            values=YES_OR_NO,
        ),
        series(
            "Polls and their times",
            "The interval between full polls, which stretches to keep the CPU budget; how long the last one took; and"
            " how old the figures are.",
            "s",
            Query("ephmon_poll_interval_seconds", "{{instance}} interval"),
            Query("ephmon_poll_duration_seconds", "{{instance}} duration"),
            Query("time() - ephmon_last_successful_poll_timestamp_seconds", "{{instance}} age of the data"),
        ),
        series(
            "Polls",
            "Polls per second by how much they read, and those that failed, by reason.",
            "ops",
            Query("sum by (instance, scope) (rate(ephmon_polls_total[$__rate_interval]))", "{{instance}} {{scope}}"),
            Query(
                "sum by (instance, reason) (rate(ephmon_poll_failures_total[$__rate_interval]))",
                "{{instance}} failed: {{reason}}",
            ),
            Query(
                "rate(ephmon_backend_disagreements_total[$__rate_interval])", "{{instance}} BPF and inet_diag disagree"
            ),
            width=6,
        ),
        series(
            "Processor",
            "Share of one processor: polls alone, and the whole process.",
            "percentunit",
            Query("rate(ephmon_poll_cpu_seconds_total[$__rate_interval])", "{{instance}} polls"),
            Query(of_ephmon("rate(process_cpu_seconds_total[$__rate_interval])"), "{{instance}} all"),
            width=6,
        ),
        series(
            "Memory",
            "Memory of the process.",
            "bytes",
            Query(of_ephmon("process_resident_memory_bytes"), "{{instance}}"),
            width=6,
        ),
        series(
            "Open files",
            "File descriptors, and how many there may be: each client of the HTTP side takes one.",
            "none",
            Query(of_ephmon("process_open_fds"), "{{instance}} open"),
            Query(of_ephmon("process_max_fds"), "{{instance}} allowed"),
            width=6,
        ),
        series(
            "Pools that exist",
            "Pools by kind, how many of them have no series of their own, and the network namespaces that are read.",
            "none",
            Query("sum by (instance, kind) (ephmon_pools)", "{{instance}} {{kind}}"),
            Query("sum by (instance, kind) (ephmon_pools_unlisted)", "{{instance}} {{kind}} unlisted"),
            Query(of_ephmon("ephmon_namespaces"), "{{instance}} namespaces {{state}}"),
            width=8,
        ),
        series(
            "Messages to receivers",
            "Messages with alerts per second that ephmon sent itself, and those that failed, by reason. No line: it"
            " sends none.",
            "ops",
            Query(
                "sum by (instance, receiver) (rate(ephmon_notifications_total[$__rate_interval]))",
                "{{instance}} {{receiver}}",
            ),
            Query(
                "topk(5, sum by (instance, receiver, reason)"
                " (rate(ephmon_notifications_failed_total[$__rate_interval])))",
                "{{instance}} {{receiver}} failed: {{reason}}",
            ),
            width=8,
        ),
        table(
            "Incident reports and log",
            "Reports that were written, and that could not be, in the time that is shown, lines of the log that were"
            " lost, and threads that ended and were started again. Reports are absent where none are kept.",
            Query("sum by (instance) (increase(ephmon_incidents_total[$__range]))", "written"),
            Query("sum by (instance) (increase(ephmon_incident_failures_total[$__range]))", "failed"),
            Query("sum by (instance) (increase(ephmon_log_lines_lost_total[$__range]))", "log lines lost"),
            Query("sum by (instance) (increase(ephmon_thread_restarts_total[$__range]))", "threads restarted"),
            labels=("instance",),
            width=8,
        ),
        table(
            "Versions",
            "What runs on the host, since when its configuration is in force, and when its certificate expires.",
            Query("max by (instance, version, python, kernel) (ephmon_build_info)"),
            Query(
                "1000 * max by (instance) (ephmon_config_last_reload_success_timestamp_seconds)",
                "configured",
                "dateTimeFromNow",
            ),
            Query(
                "1000 * max by (instance) (ephmon_tls_certificate_not_after_timestamp_seconds)",
                "certificate expires",
                "dateTimeFromNow",
            ),
            labels=("instance", "version", "python", "kernel"),
            width=12,
        ),
        table(
            "How sockets are read",
            "The interface that the last successful poll read each protocol through.",
            Query("max by (instance, protocol, backend) (ephmon_backend_info)"),
            labels=("instance", "protocol", "backend"),
            width=12,
        ),
        table(
            "Receivers",
            "By kind of receiver: alerts whose present state has not reached it, alerts whose end it was never told,"
            " and when it last took a message. Empty where ephmon sends none.",
            Query("max by (instance, receiver) (ephmon_notifications_pending)", "pending"),
            Query("max by (instance, receiver) (increase(ephmon_notifications_dropped_total[$__range]))", "dropped"),
            Query(
                "1000 * max by (instance, receiver) (ephmon_last_successful_notification_timestamp_seconds)",
                "last message",
                "dateTimeFromNow",
            ),
            labels=("instance", "receiver"),
            width=12,
        ),
        series(
            "Refused requests",
            "HTTP requests per second that were refused: for the host that they named, or for want of the token.",
            "ops",
            Query(
                "sum by (instance, reason) (rate(ephmon_http_requests_refused_total[$__rate_interval]))",
                "{{instance}} {{reason}}",
            ),
            width=12,
        ),
    ),
)
