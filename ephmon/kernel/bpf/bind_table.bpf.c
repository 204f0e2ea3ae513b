/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Counts the TCP sockets of this host by what connect() and bind() will do with their ports.
 *
 * connect() without a port decides by the bind table of the kernel (__inet_hash_connect() in
 * net/ipv4/inet_hashtables.c). That is the hash table `bhash`. It has one bucket for each port, network namespace and
 * VRF in which a socket has the port, and on each bucket hang the sockets that have it: struct inet_bind_bucket. This
 * program walks the table when user space asks it to (BPF_PROG_RUN), and leaves what it counted in maps that user space
 * has mapped. reader.py says in the same order what each byte of them means.
 *
 * Nothing is locked. Whatever is read may have been freed a moment ago, so everything is read by
 * bpf_probe_read_kernel(), which fails instead of faulting, and every step checks that it still is where it thinks it
 * is. What it finds to be otherwise is counted in `torn`, and user space walks again.
 *
 * The structures below name only the members that are needed. Where they are in the running kernel is filled in when
 * the program is loaded (CO-RE: the kernel's own BTF says it). A name that ends in ___ and a word is the layout of some
 * kernels only; libbpf drops that ending.
 *
 * script/bpf compiles this file.
 */
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* --- The kernel's structures, as far as they are read. ------------------------------------------------------------ */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
};

/* include/net/inet_hashtables.h */
struct inet_bind_hashbucket {
	struct hlist_head chain;
};

struct inet_hashinfo {
	struct inet_bind_hashbucket *bhash;
	unsigned int bhash_size;
};

/* Since Linux 6.8 the sockets of a port hang on one inet_bind2_bucket for each local address. */
struct inet_bind_bucket {
	possible_net_t ib_net;
	int l3mdev;
	unsigned short port;
	signed char fastreuse;
	signed char fastreuseport;
	struct hlist_node node;
	struct hlist_head bhash2;
};

/* Before, they hung on the bucket itself. */
struct inet_bind_bucket___before_6_8 {
	struct hlist_head owners;
};

struct inet_bind2_bucket {
	possible_net_t ib_net;
	unsigned short port;
	struct hlist_node bhash_node;
	struct hlist_head owners;
};

/* include/net/sock.h: what full sockets and TIME_WAITs begin with. */
struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	unsigned char skc_ipv6only : 1;
	int skc_bound_dev_if;
	struct hlist_node skc_bind_node;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

/* include/linux/kernfs.h: the directory of a cgroup. Its id is the cgroup's, cgroup_id() in include/linux/cgroup.h. */
struct kernfs_node {
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

struct sock {
	struct sock_common __sk_common;
	unsigned char sk_userlocks;
	struct sock_cgroup_data sk_cgrp_data;
};

struct timer_list {
	unsigned long expires;
};

/* include/net/inet_timewait_sock.h and include/linux/tcp.h */
struct inet_timewait_sock {
	struct sock_common __tw_common;
	unsigned char tw_substate;
	struct timer_list tw_timer;
};

/* Since Linux 6.14 the time at which TIME_WAIT began decides on its reuse. */
struct inet_timewait_sock___since_6_14 {
	__u32 tw_entry_stamp;
};

struct tcp_timewait_sock {
	struct inet_timewait_sock tw_sk;
	int tw_ts_recent_stamp;
};

/* include/net/netns/ipv4.h. The range is one word since Linux 6.8, and was an array of two numbers. */
struct local_ports {
	__u32 range;
};

struct local_ports___before_6_8 {
	int range[2];
};

struct inet_timewait_death_row {
	struct inet_hashinfo *hashinfo;
	int sysctl_max_tw_buckets;
};

struct netns_ipv4 {
	struct inet_timewait_death_row tcp_death_row;
	struct local_ports ip_local_ports;
	__u8 sysctl_ip_autobind_reuse;
	__u8 sysctl_tcp_tw_reuse;
	__u8 sysctl_tcp_timestamps;
	unsigned long *sysctl_local_reserved_ports;
};

struct netns_ipv4___since_6_14 {
	unsigned int sysctl_tcp_tw_reuse_delay;
};

struct netns_ipv4___before_6_8 {
	struct local_ports___before_6_8 ip_local_ports;
};

struct ns_common {
	unsigned int inum;
};

struct user_namespace {
	struct ns_common ns;
};

struct net {
	struct user_namespace *user_ns;
	struct ns_common ns;
	__u32 hash_mix;
	struct netns_ipv4 ipv4;
	__u64 net_cookie;
};

struct net___since_6_14 {
	struct netns_ipv4___since_6_14 ipv4;
};

struct net___before_6_8 {
	struct netns_ipv4___before_6_8 ipv4;
};

struct nsproxy {
	struct net *net_ns;
};

struct task_struct {
	struct nsproxy *nsproxy;
};

#pragma clang attribute pop

#define AF_INET 2

/* include/net/tcp_states.h */
#define TCP_ESTABLISHED 1
#define TCP_FIN_WAIT2 5
#define TCP_TIME_WAIT 6
#define TCP_CLOSE 7
#define TCP_LISTEN 10

/* include/net/sock.h: how a socket came by its port. */
#define SOCK_BINDPORT_LOCK 8
#define SOCK_CONNECT_BIND 16

#define LOOPBACK_IFINDEX 1
#define PORTS 65536
#define NOTHING (~0u)
#define WORD 64

/* --- What user space reads. reader.py has the same in Python. ----------------------------------------------------- */

/* Bounds. Whatever is beyond one of them is counted. */
#define MOST_NAMESPACES 1024
#define MOST_BITMAPS 64
#define MOST_POOLS 131072
#define MOST_PORTS 131072
#define MOST_TRIES 64
#define MOST_BUCKETS_IN_A_CHAIN 65536
#define MOST_SOCKETS_ON_A_PORT (1 << 22)
#define MOST_ADDRESSES_ON_A_PORT 65536

#define SLOTS (2 * MOST_POOLS)
#define NAMESPACE_SLOTS (2 * MOST_NAMESPACES)

/* The histogram of what TIME_WAITs have left of their 60 seconds (TCP_TIMEWAIT_LEN, include/net/tcp.h). */
#define CELLS 20

/* A connected socket is in one of nine states, and TCP_ESTABLISHED is counted apart. */
#define COUNTED_STATES 8

struct control {
	/* Set by user space: which part of the table to walk, and how. */
	__u64 seed;		/* of the hash over pools: random, so that nobody can choose keys that collide */
	__u32 generation;	/* of this walk; slots of an earlier one are free */
	__u32 start;		/* the first chain of the hash table */
	__u32 number;		/* how many chains */
	__u32 own_only;		/* 1: only the namespace of whoever runs the program */
	__u32 ticks_per_cell;	/* of the histogram: its seconds, times the kernel's HZ */

	/* Set here. The rest is added up over all parts of a walk. */
	__u32 chains;		/* how many chains the table has */
	__u32 own_inode;	/* the namespace of whoever runs the program */
	__u32 unknown_layout;
	__u32 namespaces;	/* how many elements of each array are in use */
	__u32 pools;
	__u32 ports;
	__u32 bitmaps;
	__u32 buckets;		/* that were looked at, whatever their port */
	__u32 sockets;		/* that were counted */
	__u32 torn;		/* steps at which something had changed meanwhile */
	__u32 repeated;		/* sockets met twice: a list had changed meanwhile */
	__u32 cut_short;	/* lists that are longer than any bound above */
	__u32 lost_namespaces;	/* buckets of namespaces that found no room */
	__u32 lost_pools;	/* sockets whose pool found no room */
	__u32 lost_ports;	/* ports that found no room in the list of ports; they are counted all the same */
	__u32 lost_bitmaps;	/* namespaces whose reserved ports found no room */
	__u32 reserved;
};

struct namespace {
	__u64 cookie;		/* never used again while the host is up, unlike the inode */
	__u64 cgroup;		/* the lowest id of the cgroups that made sockets here, which is the oldest; 0: not known */
	__u32 inode;
	__u32 user_inode;	/* of the user namespace that owns it */
	__u32 low, high;	/* ip_local_port_range */
	__u32 usable;		/* ports of the range that are not reserved */
	__u32 bitmap;		/* index of its reserved ports plus 1; 0: it reserves none; NOTHING: they found no room */
	__u32 tw_reuse, tw_reuse_delay_ms, timestamps, autobind_reuse, max_tw_buckets;
	/* Usable ports that have a bucket outside any VRF, and how many of them are which. */
	__u32 ports, blocked;
	__u32 v4;		/* stop bind(0.0.0.0, 0): some socket is IPv4 or takes IPv4 too */
	__u32 any_v4, any_v6;	/* have a socket on 0.0.0.0, or on :: without IPV6_V6ONLY; have one on :: */
	__u32 accepted;		/* sockets beside a listener, which are in no pool because they may be accepted */
	__u32 sockets;
};

/* A pool of connect() if it has a destination. Else a local address, with the ports that its sockets have. */
struct key {
	__u64 source[2], destination[2];	/* IPv4 as ::ffff:a.b.c.d */
	__u32 device;		/* SO_BINDTODEVICE of the sockets, 0 if none */
	__u32 l3mdev;		/* the VRF, 0 if none */
	__u16 destination_port;	/* in network order */
	__u16 namespace;	/* index into the array */
	/* No part of the key: */
	__u16 last_port;	/* the port that was counted last */
	__u16 is_address;
};

/* No number is above 65,535, because no two sockets of one key have the same port (__inet_check_established()). */
struct connect_counts {
	/* In the cache line of the key: counting an established socket touches no other. */
	__u16 held;		/* ports that may be shared with other destinations, but not with this one */
	__u16 second;		/* those of them that connect() does not get, and that it tries last: see search_order() */
	__u16 time_wait;	/* those of `held` that are held by a TIME_WAIT */
	__u16 reusable;		/* those of these that connect() takes nevertheless */
	__u16 on_blocked;	/* sockets on ports that connect() never takes */
	__u16 established;	/* sockets in this state */

	__u16 reusable_later;	/* ports of `time_wait` that connect() will take before they end */
	__u16 named;		/* sockets of `on_blocked` that named their port in bind() */
	__u16 orphaned;		/* sockets in FIN_WAIT2 whose process has gone */
	__u16 states[COUNTED_STATES];	/* sockets in the other states; state_index() has the order */
	__u16 ends_in[CELLS];	/* ports of `time_wait`, by the seconds that they have left */
};

struct address_counts {
	__u32 ports;		/* on which a socket has this address */
	__u32 beside_any;	/* those of them where a socket on the wildcard address stops bind() too */
	__u32 bound;		/* sockets that have their port from bind(address, 0), and are not connected */
	__u32 bound_connected;	/* blocked ports without listener of connected sockets that did not name their port */
	__u32 time_wait;	/* those of `ports` where all sockets with this address are TIME_WAITs */
	__u32 last_is_time_wait; /* whether the port that was counted last is one of these */
	__u32 last_bound_connected; /* the port that was counted last in `bound_connected` */
};

struct pool {
	struct key key;
	__u32 address;		/* index of the entry of its local address */
	union {
		struct connect_counts connect;
		struct address_counts by_address;
	};
};

#define HAS_BLOCKED 1
#define HAS_LISTENER 2
#define HAS_BOUND 4		/* a socket that is bound, and neither connected nor listening */
#define HAS_CONNECTED 8
#define HAS_TIME_WAIT 16
#define HAS_DEVICE 32		/* a socket that is bound to a device */
#define HAS_V4 64
#define HAS_ANY_V4 128
#define HAS_ANY_V6 256

struct port {
	__u32 l3mdev;
	__u32 sockets;
	__u16 port;
	__u16 namespace;
	__u32 flags;
};

_Static_assert(sizeof(struct control) == 96, "reader.py");
_Static_assert(sizeof(struct namespace) == 88, "reader.py");
_Static_assert(sizeof(struct pool) == 128, "reader.py");
_Static_assert(sizeof(struct port) == 16, "reader.py");

/* --- Memory. ------------------------------------------------------------------------------------------------------ */

#define ARRAY(name, element, entries, flags)           \
	struct {                                       \
		__uint(type, BPF_MAP_TYPE_ARRAY);      \
		__uint(max_entries, entries);          \
		__uint(map_flags, flags);              \
		__type(key, __u32);                    \
		__type(value, element);                \
	} name SEC(".maps")

/* User space maps these. */
ARRAY(control, struct control, 1, BPF_F_MMAPABLE);
ARRAY(namespaces, struct namespace, MOST_NAMESPACES, BPF_F_MMAPABLE);
ARRAY(pools, struct pool, MOST_POOLS, BPF_F_MMAPABLE);
ARRAY(ports, struct port, MOST_PORTS, BPF_F_MMAPABLE);

struct bitmap {
	__u64 words[PORTS / WORD];
};
ARRAY(bitmaps, struct bitmap, MOST_BITMAPS, BPF_F_MMAPABLE);

/* Hash tables with open addresses. Nothing is ever deleted: a slot of another generation is free. */
struct slot {
	__u32 generation;
	__u32 index;
};
ARRAY(slots, struct slot, SLOTS, 0);

struct namespace_slot {
	__u64 net;		/* the kernel's address of it, which user space never sees */
	__u32 generation;
	__u32 index;
};
ARRAY(namespace_slots, struct namespace_slot, NAMESPACE_SLOTS, 0);

#define HEADS_BYTES 4096
#define BUCKET_BYTES 128
#define SOCKET_BYTES 192
#define TIME_WAIT_BYTES 512

/* Where the walk is. Kept here, because verifiers follow numbers on the stack one by one, and those in maps not. */
struct place {
	__u64 bhash;
	__u32 chain;		/* number of the chain */
	__u32 first_chain;	/* of those in `heads` */
	__u64 bucket;		/* the next node of the chain */
	__u64 address_bucket;	/* the next node of the bucket's list of addresses */
	__u64 owner;		/* the next node of a list of sockets */
	__u64 first;		/* the first node of the bucket's list of addresses, or of sockets */
	__u64 address;		/* of the socket */
	__u64 full_socket;	/* of one of the port's sockets that is no TIME_WAIT, 0 if there is none */
	__u64 net;		/* of the bucket, as all that follows */
	__u32 hash_mix;
	__u32 namespace;
	__u32 l3mdev;
	__u32 port;
	__u32 flags;
	__u32 sockets;
	__u64 counted[2];	/* the local address that the port was counted for last */
	__u32 is_counted;
	__u32 is_second;	/* what search_order() says of the port, and 0 if it is blocked */
	__u32 counting;		/* 0: look for what decides about the others; 1: count */
	__u64 own_net;
	__u32 hash;		/* where a search begins */
	__u32 looked_up;	/* the index that a search for a pool found */
	__u32 is_new;		/* whether a search for a namespace made its record */
	__u32 tw_reuse, tw_reuse_delay_ms; /* of the namespace */
	__u32 accepted;
	__u32 jiffies, now_ms, now_seconds; /* when this part of the walk began */
	struct key key;
	__u8 heads[HEADS_BYTES] __attribute__((aligned(8)));
	__u8 bucket_bytes[BUCKET_BYTES] __attribute__((aligned(8)));
	__u8 address_bytes[BUCKET_BYTES] __attribute__((aligned(8)));
	__u8 socket[SOCKET_BYTES] __attribute__((aligned(8)));
	__u8 time_wait[TIME_WAIT_BYTES] __attribute__((aligned(8)));
};
ARRAY(place, struct place, 1, 0);

/* What every step is handed. */
struct walk {
	struct control *control;
	struct place *at;
};

#define FIRST(map)                                          \
	({                                                  \
		__u32 zero = 0;                             \
		bpf_map_lookup_elem(&map, &zero);           \
	})

/* Reads one member of a structure of the kernel, 0 if its memory has gone. */
#define READ(address, type, member)                                                             \
	({                                                                                      \
		struct type *at_address = (void *)(address);                                    \
		typeof(at_address->member) value;                                               \
		__builtin_memset(&value, 0, sizeof(value));                                     \
		bpf_core_read(&value, sizeof(value), &at_address->member);                      \
		value;                                                                          \
	})

/*
 * VIEW(type, address, room) is a pointer to a structure of the kernel. FETCH(type, address, room) comes before it is used,
 * and is not 0 if the memory of the structure has gone.
 *
 * With DIRECT the pointer is the address itself, and the processor reads what is read of it, zeros if the memory has
 * gone. The kernel's verifier knows such pointers since Linux 6.2 (bpf_rdonly_cast()), and a walk is cheaper by a fifth.
 * Otherwise the structure is copied to `room`, or as much of its beginning as there is room for.
 */
#ifdef DIRECT
extern void *bpf_rdonly_cast(void *address, __u32 type_id) __ksym;
#define FETCH(type, address, room) 0
#define VIEW(type, address, room) \
	((struct type *)bpf_rdonly_cast((void *)(address), bpf_core_type_id_kernel(struct type)))
#else
#define FETCH(type, address, room)                                                                               \
	bpf_probe_read_kernel(room,                                                                              \
			      bpf_core_type_size(struct type) < sizeof(room) ? bpf_core_type_size(struct type)   \
									     : sizeof(room),                     \
			      (const void *)(address))
#define VIEW(type, address, room) ((struct type *)(room))
#endif

#define OFFSET(type, member) __builtin_preserve_field_info(((struct type *)0)->member, BPF_FIELD_BYTE_OFFSET)

/* Keeps the compiler from computing a number in another way after its bounds were tested, which verifiers do not see. */
#define KEEP(number) asm volatile("" : "+r"(number))

#define ODD_1 0x9e3779b97f4a7c15ull
#define ODD_2 0xd6e8feb86659fd93ull

static __always_inline __u64 mix(__u64 hash)
{
	hash ^= hash >> 32;
	hash *= ODD_2;
	hash ^= hash >> 32;
	hash *= ODD_1;
	return hash ^ hash >> 32;
}

/* --- The namespaces. ---------------------------------------------------------------------------------------------- */

struct word_loop {
	struct walk *walk;
	struct bitmap *bitmap;
	__u32 low, high;
	__u32 reserved;		/* inside the range */
	__u64 any;		/* not zero: some port is reserved, inside the range or not */
};

static __always_inline __u32 ones(__u64 word)
{
	word -= (word >> 1) & 0x5555555555555555ull;
	word = (word & 0x3333333333333333ull) + ((word >> 2) & 0x3333333333333333ull);
	return (((word + (word >> 4)) & 0x0f0f0f0f0f0f0f0full) * 0x0101010101010101ull) >> 56;
}

/* Counts the reserved ports of one word of the bitmap, inside the range. */
static long count_reserved(__u32 number, struct word_loop *loop)
{
	__u64 word;

	if (number >= PORTS / WORD)
		return 1;
	word = loop->bitmap->words[number];
	loop->any |= word;
	if (number < loop->low / WORD || number > loop->high / WORD)
		return 0;
	if (number == loop->low / WORD)
		word &= ~0ull << (loop->low % WORD);
	if (number == loop->high / WORD)
		word &= ~0ull >> (WORD - 1 - loop->high % WORD);
	loop->reserved += ones(word);
	return 0;
}

/* net->ipv4.sysctl_local_reserved_ports: one bit for each port (proc_do_large_bitmap() in kernel/sysctl.c). */
static __always_inline void read_reserved(struct walk *walk, __u64 net, struct namespace *namespace)
{
	struct control *control = walk->control;
	__u32 index = control->bitmaps;
	struct bitmap *bitmap = bpf_map_lookup_elem(&bitmaps, &index);
	struct word_loop loop = {.walk = walk, .low = namespace->low, .high = namespace->high};
	unsigned long *words = READ(net, net, ipv4.sysctl_local_reserved_ports);

	if (!bitmap) {
		control->lost_bitmaps++;
		namespace->bitmap = NOTHING;
		return;
	}
	if (bpf_probe_read_kernel(bitmap, sizeof(*bitmap), words)) {
		control->torn++;
		return;
	}
	loop.bitmap = bitmap;
	bpf_loop(PORTS / WORD, count_reserved, &loop, 0);
	if (!loop.any)
		return; /* the next namespace uses the same memory */
	control->bitmaps = index + 1;
	namespace->bitmap = index + 1;
	namespace->usable -= loop.reserved;
}

/* The settings of a namespace: struct netns_ipv4. */
static __always_inline void read_settings(struct walk *walk, __u64 net, struct namespace *namespace)
{
	struct net___since_6_14 *newer = (void *)net;
	struct net___before_6_8 *older = (void *)net;

	namespace->cookie = READ(net, net, net_cookie);
	namespace->cgroup = 0;
	namespace->inode = READ(net, net, ns.inum);
	namespace->user_inode = READ(READ(net, net, user_ns), user_namespace, ns.inum);
	namespace->tw_reuse = READ(net, net, ipv4.sysctl_tcp_tw_reuse);
	namespace->timestamps = READ(net, net, ipv4.sysctl_tcp_timestamps);
	namespace->autobind_reuse = READ(net, net, ipv4.sysctl_ip_autobind_reuse);
	namespace->max_tw_buckets = READ(net, net, ipv4.tcp_death_row.sysctl_max_tw_buckets);
	namespace->tw_reuse_delay_ms = 1000;
	if (bpf_core_field_exists(newer->ipv4.sysctl_tcp_tw_reuse_delay))
		namespace->tw_reuse_delay_ms = READ(net, net___since_6_14, ipv4.sysctl_tcp_tw_reuse_delay);
	if (bpf_core_field_exists(older->ipv4.ip_local_ports.range) &&
	    bpf_core_field_size(older->ipv4.ip_local_ports.range) == sizeof(int[2])) {
		int range[2] = {};

		bpf_core_read(range, sizeof(range), &older->ipv4.ip_local_ports.range);
		namespace->low = range[0] & (PORTS - 1);
		namespace->high = range[1] & (PORTS - 1);
	} else {
		__u32 range = READ(net, net, ipv4.ip_local_ports.range);

		/* inet_get_local_port_range(): the low end is in the low half */
		namespace->low = range & (PORTS - 1);
		namespace->high = range >> 16;
	}
	namespace->bitmap = 0;
	namespace->usable = namespace->high - namespace->low + 1;
	namespace->ports = namespace->blocked = namespace->v4 = namespace->any_v4 = namespace->any_v6 = 0;
	namespace->accepted = namespace->sockets = 0;
	read_reserved(walk, net, namespace);
}

/* Looks at one slot; ends the search if it is the namespace's, or free. */
static long search_namespace(__u32 attempt, struct walk *walk)
{
	struct control *control = walk->control;
	struct place *at = walk->at;
	__u32 number = (at->hash + attempt) & (NAMESPACE_SLOTS - 1);
	struct namespace_slot *slot = bpf_map_lookup_elem(&namespace_slots, &number);

	if (!slot)
		return 1;
	if (slot->generation == control->generation) {
		if (slot->net != at->net)
			return 0;
		at->namespace = slot->index;
		return 1;
	}
	if (control->namespaces >= MOST_NAMESPACES)
		return 1;
	at->namespace = control->namespaces++;
	at->is_new = 1;
	slot->net = at->net;
	slot->generation = control->generation;
	slot->index = at->namespace;
	return 1;
}

/* Finds the record of the namespace at->net, or makes one. Returns 0 if there is no room. */
static __always_inline struct namespace *find_namespace(struct walk *walk)
{
	struct place *at = walk->at;
	struct namespace *namespace;

	at->hash = mix(at->net ^ walk->control->seed);
	at->namespace = NOTHING;
	at->is_new = 0;
	bpf_loop(MOST_TRIES, search_namespace, walk, 0);
	namespace = bpf_map_lookup_elem(&namespaces, &at->namespace);
	if (namespace && at->is_new)
		read_settings(walk, at->net, namespace);
	return namespace;
}

/* inet_is_local_reserved_port() in include/net/ip.h */
static __always_inline int is_reserved(struct namespace *namespace, __u32 port)
{
	__u32 index = namespace->bitmap - 1;
	struct bitmap *bitmap;

	if (!namespace->bitmap)
		return 0;
	bitmap = bpf_map_lookup_elem(&bitmaps, &index);
	return bitmap && (bitmap->words[(port & (PORTS - 1)) / WORD] >> (port % WORD) & 1);
}

/* --- The pools. --------------------------------------------------------------------------------------------------- */

static __always_inline int same(const struct key *one, const struct key *other)
{
	return one->source[1] == other->source[1] && one->destination[1] == other->destination[1] &&
	       one->source[0] == other->source[0] && one->destination[0] == other->destination[0] &&
	       one->device == other->device && one->l3mdev == other->l3mdev &&
	       one->destination_port == other->destination_port && one->namespace == other->namespace;
}

/* Looks at one slot; ends the search if it is the key's, or free. */
static long search_pool(__u32 attempt, struct walk *walk)
{
	struct control *control = walk->control;
	struct place *at = walk->at;
	__u32 number = (at->hash + attempt) & (SLOTS - 1);
	struct slot *slot = bpf_map_lookup_elem(&slots, &number);
	struct pool *pool;

	if (!slot)
		return 1;
	if (slot->generation == control->generation) {
		pool = bpf_map_lookup_elem(&pools, &slot->index);
		if (!pool || !same(&pool->key, &at->key))
			return 0;
		at->looked_up = slot->index;
		return 1;
	}
	pool = bpf_map_lookup_elem(&pools, &control->pools);
	if (!pool)
		return 1;
	at->looked_up = control->pools++;
	slot->generation = control->generation;
	slot->index = at->looked_up;
	__builtin_memset(pool, 0, sizeof(*pool));
	pool->key = at->key;
	pool->address = NOTHING;
	return 1;
}

/* Finds the entry of the key in at->key, or makes one. Its index is then in at->looked_up. Returns 0 if there is no room. */
static __always_inline struct pool *find_pool(struct walk *walk)
{
	struct place *at = walk->at;
	struct key *key = &at->key;
	struct slot *slot;
	struct pool *pool;
	__u64 hash = walk->control->seed;
	__u32 number;

	hash = mix(hash ^ key->source[1]) ^ key->source[0] * ODD_1 ^ key->destination[0] * ODD_2;
	hash = mix(hash ^ key->destination[1] ^ (__u64)key->device << 32 ^ (__u64)key->l3mdev << 48 ^
		   (__u64)key->l3mdev >> 16 ^ (__u64)key->destination_port << 16 ^ key->namespace);
	at->hash = hash;
	/* Mostly the first slot is the right one. */
	number = hash & (SLOTS - 1);
	slot = bpf_map_lookup_elem(&slots, &number);
	if (slot && slot->generation == walk->control->generation) {
		pool = bpf_map_lookup_elem(&pools, &slot->index);
		if (pool && same(&pool->key, key)) {
			at->looked_up = slot->index;
			return pool;
		}
	}
	at->looked_up = NOTHING;
	bpf_loop(MOST_TRIES, search_pool, walk, 0);
	pool = bpf_map_lookup_elem(&pools, &at->looked_up);
	if (!pool)
		walk->control->lost_pools++;
	return pool;
}

/* --- One socket. -------------------------------------------------------------------------------------------------- */

/* inet_rcv_saddr_any() in net/ipv4/inet_connection_sock.c, for IPv6 with and without IPV6_V6ONLY */
static __always_inline __u32 wildcards(const struct key *key, int is_v4, int v6_only)
{
	if (is_v4)
		return key->source[1] >> 32 ? 0 : HAS_ANY_V4;
	if (key->source[0] | key->source[1])
		return 0;
	return v6_only ? HAS_ANY_V6 : HAS_ANY_V4 | HAS_ANY_V6;
}

/* Puts the addresses of a socket into a key; returns whether it is an IPv4 one. */
static __always_inline int read_addresses(struct sock_common *socket, struct key *key)
{
	const __u64 mapped = 0xffff0000ull; /* bytes 10 and 11 of ::ffff:0.0.0.0 are 255 */

	if (socket->skc_family == AF_INET) {
		key->source[0] = key->destination[0] = 0;
		key->source[1] = (__u64)socket->skc_rcv_saddr << 32 | mapped;
		key->destination[1] = (__u64)socket->skc_daddr << 32 | mapped;
		return 1;
	}
	if (!bpf_core_field_exists(socket->skc_v6_daddr)) {
		key->source[0] = key->destination[0] = key->source[1] = key->destination[1] = 0;
		return 0;
	}
	__builtin_memcpy(key->source, &socket->skc_v6_rcv_saddr, sizeof(key->source));
	__builtin_memcpy(key->destination, &socket->skc_v6_daddr, sizeof(key->destination));
	return key->source[0] == 0 && (__u32)key->source[1] == mapped;
}

static __always_inline int is_loopback(const __u64 *address)
{
	/* ipv4_is_loopback(), of mapped addresses too, and ipv6_addr_loopback() */
	if (address[0])
		return 0;
	return (__u32)address[1] == 0xffff0000u ? (address[1] >> 32 & 0xff) == 127 : address[1] == 1ull << 56;
}

/* The rules of tcp_twsk_unique() in net/ipv4/tcp_ipv4.c for a socket that has no port yet: whether it gets the port now. */
static __always_inline int judge_time_wait(struct place *at, struct tcp_timewait_sock *tcp,
					    struct connect_counts *counts)
{
	struct inet_timewait_sock___since_6_14 *newer = (void *)tcp;
	__u32 stamp = tcp->tw_ts_recent_stamp;
	int is_old;

	if (!at->tw_reuse)
		return 0;
	if (at->tw_reuse == 2 && at->key.device != LOOPBACK_IFINDEX && !is_loopback(at->key.source) &&
	    !is_loopback(at->key.destination))
		return 0;
	/* The peer sent no timestamps: PAWS could not tell the old connection from the new one. */
	if (!stamp)
		return 0;
	if (bpf_core_field_exists(newer->tw_entry_stamp)) {
		/* tcp_clock_ms() against the end of the delay, as time_after32() compares */
		is_old = (__s32)(newer->tw_entry_stamp + at->tw_reuse_delay_ms - at->now_ms) < 0;
	} else {
		/* ktime_get_seconds(): a later second than that of the last timestamp */
		is_old = (__s32)(stamp - at->now_seconds) < 0;
	}
	if (is_old)
		counts->reusable++;
	else
		counts->reusable_later++;
	return is_old;
}

/*
 * 1 unless the number is 0. Written like this it is no branch: verifiers follow both ways of each, with all that comes
 * after it, so branches are what the time of loading goes into.
 */
static __always_inline __u32 not_zero(__u32 number)
{
	return (number | -number) >> 31;
}

/* The same of `number` below `limit`, for numbers below 2^31. */
static __always_inline __u32 is_below(__u32 number, __u32 limit)
{
	return (number - limit) >> 31;
}

/* The place of a state in connect_counts.states: SYN_SENT to TIME_WAIT (2 to 6), CLOSE_WAIT, LAST_ACK and CLOSING. */
static __always_inline __u32 state_index(__u32 state)
{
	return state - 2 - is_below(TCP_CLOSE, state) - is_below(TCP_LISTEN, state);
}

static __always_inline void count_state(struct connect_counts *counts, __u32 state)
{
	__u32 index = state_index(state);

	KEEP(index);
	if (index < COUNTED_STATES)
		counts->states[index]++;
}

/* __inet_hash_connect() walks every second port from the low end of the range first, and the others if it finds none. */
static __always_inline __u32 search_order(__u32 low, __u32 port)
{
	return (port - low) & 1;
}

/* Adds a TIME_WAIT, or the FIN_WAIT2 of a socket whose process has gone: both are struct inet_timewait_sock. */
static __always_inline void count_time_wait(struct walk *walk, struct connect_counts *counts, int is_blocked)
{
	struct place *at = walk->at;
	struct tcp_timewait_sock *tcp = VIEW(tcp_timewait_sock, at->address, at->time_wait);
	__u32 substate;
	__s32 left;
	__u64 cell;

	if (FETCH(tcp_timewait_sock, at->address, at->time_wait)) {
		walk->control->torn++;
		return;
	}
	substate = tcp->tw_sk.tw_substate;
	if (substate == TCP_FIN_WAIT2)
		counts->orphaned++;
	else
		count_state(counts, TCP_TIME_WAIT);
	if (is_blocked)
		return;
	if (substate == TCP_FIN_WAIT2) {
		counts->second += at->is_second;
		return;
	}
	/* inet_csk_diag_fill() shows the same difference as idiag_expires */
	left = (__s32)((__u32)tcp->tw_sk.tw_timer.expires - at->jiffies);
	cell = left < 0 ? 0 : (__u64)left / walk->control->ticks_per_cell; /* BPF divides by 0 without harm */
	KEEP(cell);
	if (cell >= CELLS)
		cell = CELLS - 1;
	KEEP(cell);
	counts->ends_in[cell]++;
	counts->time_wait++;
	if (!judge_time_wait(at, tcp, counts))
		counts->second += at->is_second;
}

/* Tells whether the port was just counted for the address at->key.source, and has a socket there that is no TIME_WAIT. */
static __always_inline int is_address_counted(struct place *at)
{
	return at->is_counted && at->counted[0] == at->key.source[0] && at->counted[1] == at->key.source[1];
}

/* Counts a port for the local address at->key.source, once however many sockets have it there. */
static __always_inline struct address_counts *count_address(struct walk *walk, struct pool *pool, int is_v4,
							    __u32 is_time_wait)
{
	struct place *at = walk->at;
	struct address_counts *counts = &pool->by_address;
	__u32 is_new, was;

	at->is_counted = is_time_wait ^ 1;
	at->counted[0] = at->key.source[0];
	at->counted[1] = at->key.source[1];

	is_new = not_zero(pool->key.last_port ^ at->port);
	pool->key.last_port = at->port;
	counts->ports += is_new;
	counts->beside_any += is_new & not_zero(at->flags & (is_v4 ? HAS_ANY_V4 : HAS_ANY_V6));
	was = counts->last_is_time_wait & (is_new ^ 1);
	counts->last_is_time_wait = is_time_wait & (is_new | was);
	counts->time_wait += counts->last_is_time_wait - was;
	return counts;
}

static __always_inline struct pool *find_address(struct walk *walk)
{
	struct key *key = &walk->at->key;

	key->destination[0] = key->destination[1] = 0;
	key->destination_port = 0;
	key->device = 0;
	key->is_address = 1;
	return find_pool(walk);
}

/* A socket that listens, or is bound and not connected: it holds its port for its own address alone. */
static __always_inline void count_unconnected(struct walk *walk, __u32 state, int is_v4, __u32 locks)
{
	struct pool *pool = find_address(walk);
	struct address_counts *counts;

	walk->at->flags |= state == TCP_LISTEN ? HAS_LISTENER : HAS_BOUND;
	if (!pool)
		return;
	counts = count_address(walk, pool, is_v4, 0);
	if (state == TCP_CLOSE && !(locks & SOCK_BINDPORT_LOCK))
		counts->bound++;
}

/* A connected socket or a TIME_WAIT: it holds its port in the pool of its source and destination. */
static __always_inline void count_connected(struct walk *walk, __u32 state, int is_v4, __u32 locks)
{
	struct control *control = walk->control;
	struct place *at = walk->at;
	struct pool *pool = 0, *address;
	struct connect_counts *counts;
	__u32 index = NOTHING;
	__u32 is_time_wait = not_zero(state ^ TCP_TIME_WAIT) ^ 1;
	int is_blocked = at->flags & HAS_BLOCKED;
	int from_bind = is_blocked && state != TCP_TIME_WAIT && !(at->flags & HAS_LISTENER) &&
			!(locks & (SOCK_BINDPORT_LOCK | SOCK_CONNECT_BIND));

	KEEP(is_time_wait);
	at->flags |= state == TCP_TIME_WAIT ? HAS_TIME_WAIT : HAS_CONNECTED;
	/* tcp_v4_syn_recv_sock() clears SOCK_BINDPORT_LOCK in what it makes of a listener, and TIME_WAIT has no locks. */
	if (at->flags & HAS_LISTENER && !(locks & SOCK_BINDPORT_LOCK)) {
		at->accepted++;
	} else {
		pool = find_pool(walk);
		if (!pool)
			return;
		if (pool->key.last_port == at->port) {
			control->repeated++;
			return;
		}
		pool->key.last_port = at->port;
		counts = &pool->connect;
		if (is_blocked) {
			counts->on_blocked++;
			counts->named += not_zero(locks & SOCK_BINDPORT_LOCK);
		} else {
			counts->held++;
		}
		if (state == TCP_TIME_WAIT) {
			count_time_wait(walk, counts, is_blocked);
		} else {
			counts->second += at->is_second;
			if (state == TCP_ESTABLISHED)
				counts->established++;
			else
				count_state(counts, state);
		}
		index = pool->address;
	}
	/* All sockets of one inet_bind2_bucket have one local address. */
	if (is_address_counted(at) && !from_bind)
		return;
	address = bpf_map_lookup_elem(&pools, &index);
	if (!address) {
		address = find_address(walk);
		if (!address)
			return;
		if (pool)
			pool->address = at->looked_up;
	}
	count_address(walk, address, is_v4, is_time_wait);
	if (from_bind) {
		address->by_address.bound_connected += not_zero(address->by_address.last_bound_connected ^ at->port);
		address->by_address.last_bound_connected = at->port;
	}
}

/* One socket of a port: sk_for_each_bound(). TIME_WAITs hang on the same list (inet_twsk_add_bind_node()). */
static long visit_socket(__u32 index, struct walk *walk)
{
	struct place *at = walk->at;
	struct sock_common *socket;
	__u32 state, locks = 0;
	int is_v4, v6_only;

	if (!at->owner)
		return 1;
	/* A socket that was freed and made anew meanwhile has another port or namespace, or its memory is something else. */
	at->address = at->owner - OFFSET(sock_common, skc_bind_node);
	socket = VIEW(sock_common, at->address, at->socket);
	if (FETCH(sock_common, at->address, at->socket) || socket->skc_num != at->port || (__u64)socket->skc_net.net != at->net) {
		walk->control->torn++;
		at->owner = 0;
		return 1;
	}
	at->owner = (__u64)socket->skc_bind_node.next;
	state = socket->skc_state;
	is_v4 = read_addresses(socket, &at->key);
	v6_only = BPF_CORE_READ_BITFIELD(socket, skc_ipv6only);
	at->flags |= wildcards(&at->key, is_v4, v6_only);
	if (!at->counting) {
		if (state == TCP_LISTEN)
			at->flags |= HAS_LISTENER;
		return 0;
	}
	at->sockets++;
	at->key.device = socket->skc_bound_dev_if;
	at->key.destination_port = socket->skc_dport;
	at->key.l3mdev = at->l3mdev;
	at->key.namespace = at->namespace;
	at->key.last_port = 0;
	at->key.is_address = 0;
	if (at->key.device)
		at->flags |= HAS_DEVICE;
	if (is_v4 || !v6_only)
		at->flags |= HAS_V4;
	if (state != TCP_TIME_WAIT)
		at->full_socket = at->address;
	/* Only on blocked ports are there sockets that came by their port in another way than by connect(). */
	if (at->flags & HAS_BLOCKED && state != TCP_TIME_WAIT)
		locks = BPF_CORE_READ_BITFIELD_PROBED((struct sock *)at->address, sk_userlocks);
	if (state == TCP_LISTEN || state == TCP_CLOSE)
		count_unconnected(walk, state, is_v4, locks);
	else
		count_connected(walk, state, is_v4, locks);
	return 0;
}

/* One local address of a port: struct inet_bind2_bucket. */
static long visit_address(__u32 index, struct walk *walk)
{
	struct place *at = walk->at;
	struct inet_bind2_bucket *bucket;
	__u64 address;

	if (!at->address_bucket)
		return 1;
	address = at->address_bucket - OFFSET(inet_bind2_bucket, bhash_node);
	bucket = VIEW(inet_bind2_bucket, address, at->address_bytes);
	if (FETCH(inet_bind2_bucket, address, at->address_bytes) || bucket->port != at->port || (__u64)bucket->ib_net.net != at->net) {
		walk->control->torn++;
		at->address_bucket = 0;
		return 1;
	}
	at->address_bucket = (__u64)bucket->bhash_node.next;
	at->owner = (__u64)bucket->owners.first;
	bpf_loop(MOST_SOCKETS_ON_A_PORT, visit_socket, walk, 0);
	if (at->owner)
		walk->control->cut_short++;
	return 0;
}

/* All sockets of a port. A port that connect() never takes is walked twice: who listens there decides about others. */
static long visit_sockets(__u32 pass, struct walk *walk)
{
	struct place *at = walk->at;
	struct inet_bind_bucket___before_6_8 *older = 0;

	at->counting = pass || !(at->flags & HAS_BLOCKED);
	if (bpf_core_field_exists(older->owners)) {
		at->owner = at->first;
		bpf_loop(MOST_SOCKETS_ON_A_PORT, visit_socket, walk, 0);
	} else {
		at->address_bucket = at->first;
		bpf_loop(MOST_ADDRESSES_ON_A_PORT, visit_address, walk, 0);
		if (at->address_bucket)
			walk->control->cut_short++;
	}
	if (at->owner)
		walk->control->cut_short++;
	return at->counting != 0;
}

/* --- One port, and the table. ------------------------------------------------------------------------------------- */

/* Remembers the cgroup of one socket of a port: sock_cgroup_ptr(), include/linux/cgroup.h. */
static __always_inline void note_cgroup(struct place *at, struct namespace *namespace)
{
	struct sock *socket = (void *)at->full_socket;
	__u64 id;

	if (!bpf_core_field_exists(socket->sk_cgrp_data)) /* a kernel without CONFIG_SOCK_CGROUP_DATA */
		return;
	id = READ(READ(READ(socket, sock, sk_cgrp_data.cgroup), cgroup, kn), kernfs_node, id);
	if (id && (!namespace->cgroup || id < namespace->cgroup))
		namespace->cgroup = id;
}

static __always_inline void count_port(struct walk *walk, struct namespace *namespace)
{
	struct control *control = walk->control;
	struct place *at = walk->at;
	__u32 index = control->ports;
	struct port *port = bpf_map_lookup_elem(&ports, &index);

	control->sockets += at->sockets;
	namespace->sockets += at->sockets;
	namespace->accepted += at->accepted;
	if (at->full_socket && at->net != at->own_net)
		note_cgroup(at, namespace);
	if (!at->l3mdev) {
		namespace->ports++;
		namespace->blocked += !!(at->flags & HAS_BLOCKED);
		namespace->v4 += !!(at->flags & HAS_V4);
		namespace->any_v4 += !!(at->flags & HAS_ANY_V4);
		namespace->any_v6 += !!(at->flags & HAS_ANY_V6);
	}
	if (!port) {
		control->lost_ports++;
		return;
	}
	control->ports = index + 1;
	port->l3mdev = at->l3mdev;
	port->sockets = at->sockets;
	port->port = at->port;
	port->namespace = at->namespace;
	port->flags = at->flags;
}

/* One bucket of a chain: struct inet_bind_bucket, one port of one namespace and VRF. */
static long visit_bucket(__u32 index, struct walk *walk)
{
	struct control *control = walk->control;
	struct place *at = walk->at;
	struct inet_bind_bucket *bucket;
	struct inet_bind_bucket___before_6_8 *older;
	struct namespace *namespace;
	__u64 address;
	int is_same;

	if (!at->bucket)
		return 1;
	address = at->bucket - OFFSET(inet_bind_bucket, node);
	bucket = VIEW(inet_bind_bucket, address, at->bucket_bytes);
	older = (void *)bucket;
	if (FETCH(inet_bind_bucket, address, at->bucket_bytes)) {
		control->torn++;
		at->bucket = 0;
		return 1;
	}
	at->bucket = (__u64)bucket->node.next;
	is_same = at->net == (__u64)bucket->ib_net.net;
	at->net = (__u64)bucket->ib_net.net;
	at->port = bucket->port;
	at->l3mdev = bucket->l3mdev;
	control->buckets++;
	if (!is_same)
		at->hash_mix = READ(at->net, net, hash_mix);
	/* inet_bhashfn(): a bucket that was freed and made anew may hang on another chain. */
	if (((at->port + at->hash_mix) & (control->chains - 1)) != at->chain) {
		control->torn++;
		at->net = 0;
		at->bucket = 0;
		return 1;
	}
	if (control->own_only && at->net != at->own_net) {
		at->net = 0;
		return 0;
	}
	namespace = is_same ? bpf_map_lookup_elem(&namespaces, &at->namespace) : find_namespace(walk);
	if (!namespace) {
		control->lost_namespaces++;
		return 0;
	}
	if (at->port < namespace->low || at->port > namespace->high || is_reserved(namespace, at->port))
		return 0;
	/* __inet_hash_connect() passes such a port over, whoever has it and wherever the connection leads to. */
	at->first = bpf_core_field_exists(older->owners) ? (__u64)older->owners.first : (__u64)bucket->bhash2.first;
	at->flags = bucket->fastreuse >= 0 || bucket->fastreuseport >= 0 ? HAS_BLOCKED : 0;
	at->sockets = at->accepted = at->is_counted = 0;
	at->full_socket = 0;
	at->is_second = search_order(namespace->low, at->port) & (at->flags ^ HAS_BLOCKED);
	at->tw_reuse = namespace->tw_reuse;
	at->tw_reuse_delay_ms = namespace->tw_reuse_delay_ms;
	bpf_loop(2, visit_sockets, walk, 0);
	count_port(walk, namespace);
	return 0;
}

#define HEAD_BYTES bpf_core_type_size(struct inet_bind_hashbucket)
#define HEADS_AT_ONCE (HEADS_BYTES / HEAD_BYTES)
#define GROUP 8

/* The first bucket of one of the chains whose heads were copied: struct inet_bind_hashbucket. */
static __always_inline __u64 first_bucket(struct place *at, __u32 index)
{
	__u32 offset = index * HEAD_BYTES + OFFSET(inet_bind_hashbucket, chain.first);

	return *(__u64 *)(at->heads + (offset & (HEADS_BYTES - sizeof(__u64))));
}

/* Some chains, of which mostly all are empty. */
static long visit_group(__u32 index, struct walk *walk)
{
	struct control *control = walk->control;
	struct place *at = walk->at;
	__u32 first = index * GROUP;
	__u64 any = 0;

	for (__u32 i = 0; i < GROUP; i++)
		any |= first_bucket(at, first + i);
	if (!any)
		return 0;
	for (__u32 i = 0; i < GROUP; i++) {
		at->chain = at->first_chain + first + i;
		at->bucket = first_bucket(at, first + i);
		/* Beyond the end of a short table is what was copied before. */
		if (!at->bucket || at->chain >= control->start + control->number || at->chain >= control->chains)
			continue;
		bpf_loop(MOST_BUCKETS_IN_A_CHAIN, visit_bucket, walk, 0);
		if (at->bucket)
			control->cut_short++;
	}
	return 0;
}

/* Copies the heads of some chains at once, because most are empty. */
static long visit_chains(__u32 index, struct walk *walk)
{
	struct control *control = walk->control;
	struct place *at = walk->at;
	__u64 bytes;

	at->first_chain = control->start + index * HEADS_AT_ONCE;
	if (at->first_chain >= control->start + control->number || at->first_chain >= control->chains)
		return 1;
	bytes = (__u64)(control->chains - at->first_chain) * HEAD_BYTES;
	KEEP(bytes);
	if (bytes > HEADS_BYTES)
		bytes = HEADS_BYTES;
	KEEP(bytes);
	if (bpf_probe_read_kernel(at->heads, bytes, (void *)(at->bhash + (__u64)at->first_chain * HEAD_BYTES))) {
		control->torn++;
		return 1;
	}
	bpf_loop(HEADS_AT_ONCE / GROUP, visit_group, walk, 0);
	return 0;
}

/* Walks control->number chains from control->start on. */
SEC("syscall")
int walk_bind_table(void *context)
{
	struct walk walk = {.control = FIRST(control), .at = FIRST(place)};
	struct control *control = walk.control;
	struct net *net = 0;
	__u64 hashinfo;

	if (!control || !walk.at)
		return 1;
	if (!bpf_core_field_exists(net->ipv4.tcp_death_row.hashinfo)) {
		control->unknown_layout = 1;
		return 1;
	}
	/* Namespaces may have an ehash of their own (tcp_child_ehash_entries), but all share one bhash. */
	walk.at->own_net = (__u64)READ(READ(bpf_get_current_task(), task_struct, nsproxy), nsproxy, net_ns);
	hashinfo = (__u64)READ(walk.at->own_net, net, ipv4.tcp_death_row.hashinfo);
	walk.at->bhash = (__u64)READ(hashinfo, inet_hashinfo, bhash);
	control->chains = READ(hashinfo, inet_hashinfo, bhash_size);
	control->own_inode = READ(walk.at->own_net, net, ns.inum);
	walk.at->jiffies = bpf_jiffies64();
	walk.at->now_ms = bpf_ktime_get_ns() / 1000000;
	walk.at->now_seconds = bpf_ktime_get_ns() / 1000000000;
	/* A namespace without any socket has no bucket; whoever asks gets its settings all the same. */
	walk.at->net = walk.at->own_net;
	walk.at->hash_mix = READ(walk.at->net, net, hash_mix);
	find_namespace(&walk);
	bpf_loop(control->number, visit_chains, &walk, 0);
	return 0;
}
