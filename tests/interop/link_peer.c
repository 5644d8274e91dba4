/* Joins a new TAP device to a link of vpnkit: a guest with the network stack of this kernel that is no machine.
 *
 *     link_peer [-k] [-n NETNS] KIND TAP ADDRESS...
 *
 *     qemu PATH | tcp:HOST:PORT            connects; 32-bit big-endian lengths
 *     qemu-listen PATH | tcp:HOST:PORT     listens, serves one connection at a time for ever, as QEMU's server=on;
 *                                          the device has a carrier while there is one
 *     vmnet PATH [UUID | - [IP]]           VMN3T version 22, 16-bit little-endian lengths; the device gets the MAC
 *     connect PATH                         gvforwarder's POST /connect, 16-bit little-endian lengths
 *     vfkit OURS THEIRS [VFKT]             unix datagrams, bound to OURS and connected to THEIRS; may say VFKT first
 *     dgram OURS THEIRS                    unix datagrams, bound to OURS and never connected, as QEMU's
 *     bess PATH                            unix packets
 *     stdio                                16-bit little-endian lengths on standard input and output
 *
 * The sockets are made where it starts, the device in NETNS.  With -k the device has the offloads that libkrun gives
 * its guests, and the header that says so is cut off: frames of up to 64 KiB with partial checksums, and nothing tells.
 *
 * It writes one line, `ready mac=MAC mtu=MTU` (0 when the other end did not say), on standard error, and ends with
 * status 0 when the link or its standard input does, 1 after a message when something is wrong.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netdb.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    ETHERNET_HEADER = 14,
    MAX_FRAME = 65549, /* a header and an IP datagram of 65535 octets */
    MAX_PREFIX = 4,
    BUFFER = 1 << 20,
    BURST = 1 << 18,   /* octets that are read from the device before they are sent */
    BURST_PACKETS = 64,
    MILLISECOND = 1,   /* before another attempt where readiness cannot be waited for */
    HANDSHAKE_SECONDS = 10,
    STREAM_BUFFER = 16 << 20, /* libkrun's */
    PACKET_BUFFER = 7 << 20,
};

enum framing { LENGTH32, LENGTH16, PACKETS };

struct link {
    int in, out; /* the same but for stdio */
    enum framing framing;
    bool has_end;               /* a packet of no octets is the end */
    struct sockaddr_un to;      /* of a socket that is not connected */
    socklen_t to_length;
};

struct tap {
    int fd;
    size_t header; /* octets in front of a frame: 0 or those of struct virtio_net_hdr */
};

enum ending { LINK_ENDED, INPUT_ENDED };

static char to_link[BUFFER], from_link[BUFFER];

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("link_peer: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

__attribute__((noreturn)) static void fail_errno(const char *what)
{
    fail("%s: %s", what, strerror(errno));
}

static bool would_wait(void)
{
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
}

/* The device */

static struct tap open_tap(const char *name, bool offload)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    struct tap tap = {.fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC)};
    if (strlen(name) >= IFNAMSIZ)
        fail("%s: the name is too long", name);
    strcpy(request.ifr_name, name);
    if (offload) {
        request.ifr_flags |= IFF_VNET_HDR;
        tap.header = sizeof(struct virtio_net_hdr);
    }
    if (tap.fd < 0 || ioctl(tap.fd, TUNSETIFF, &request) < 0)
        fail_errno(name);
    if (offload && ioctl(tap.fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) < 0)
        fail_errno("TUNSETOFFLOAD");
    return tap;
}

static void set_carrier(struct tap tap, int carrier)
{
    if (ioctl(tap.fd, TUNSETCARRIER, &carrier) < 0)
        fail_errno("TUNSETCARRIER");
}

static void set_mac(struct tap tap, const unsigned char *mac)
{
    struct ifreq request = {.ifr_hwaddr.sa_family = ARPHRD_ETHER};
    memcpy(request.ifr_hwaddr.sa_data, mac, 6);
    if (ioctl(tap.fd, SIOCSIFHWADDR, &request) < 0)
        fail_errno("SIOCSIFHWADDR");
}

static void get_mac(struct tap tap, unsigned char *mac)
{
    struct ifreq request = {0};
    if (ioctl(tap.fd, SIOCGIFHWADDR, &request) < 0)
        fail_errno("SIOCGIFHWADDR");
    memcpy(mac, request.ifr_hwaddr.sa_data, 6);
}

/* The octets of the next frame, which is written to `frame` (MAX_FRAME octets); 0 when there is none. */
static size_t read_frame(struct tap tap, char *frame)
{
    char header[sizeof(struct virtio_net_hdr)];
    struct iovec parts[2] = {{header, tap.header}, {frame, MAX_FRAME}};
    ssize_t length = readv(tap.fd, parts, 2);
    if (length < 0 && !would_wait())
        fail_errno("the device");
    return length > (ssize_t)tap.header ? (size_t)length - tap.header : 0;
}

/* A frame that the device does not take is lost. */
static void write_frame(struct tap tap, const char *frame, size_t length)
{
    static const char header[sizeof(struct virtio_net_hdr)];
    struct iovec parts[2] = {{(void *)header, tap.header}, {(void *)frame, length}};
    if (writev(tap.fd, parts, 2) < 0 && !would_wait() && errno != EIO && errno != EINVAL && errno != ENOMEM)
        fail_errno("the device");
}

/* Sockets */

static struct sockaddr_un unix_address(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        fail("%s: the path is longer than %zu octets", path, sizeof address.sun_path - 1);
    strcpy(address.sun_path, path);
    return address;
}

static int unix_socket(int type)
{
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail_errno("socket");
    return fd;
}

static void bind_unix(int fd, const char *path)
{
    struct sockaddr_un address = unix_address(path);
    unlink(path);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail_errno(path);
}

static void connect_unix(int fd, const char *path)
{
    struct sockaddr_un address = unix_address(path);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail_errno(path);
}

static int tcp_socket(const char *host_port, bool listening)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV}, *found;
    char host[64];
    const char *colon = strrchr(host_port, ':');
    int on = 1;
    if (!colon || (size_t)(colon - host_port) >= sizeof host)
        fail("%s is not HOST:PORT", host_port);
    memcpy(host, host_port, (size_t)(colon - host_port));
    host[colon - host_port] = 0;
    if (getaddrinfo(host, colon + 1, &hints, &found) != 0)
        fail("%s is not an address and a port", host_port);
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail_errno("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if ((listening ? bind : connect)(fd, found->ai_addr, found->ai_addrlen) < 0)
        fail_errno(host_port);
    freeaddrinfo(found);
    return fd;
}

static int open_stream(const char *address, bool listening)
{
    int fd;
    if (strncmp(address, "tcp:", 4) == 0) {
        fd = tcp_socket(address + 4, listening);
    } else {
        fd = unix_socket(SOCK_STREAM);
        (listening ? bind_unix : connect_unix)(fd, address);
    }
    if (listening && listen(fd, 1) < 0)
        fail_errno(address);
    return fd;
}

static void set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        fail_errno("fcntl");
}

static void enlarge(int fd, int size)
{
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
}

/* Handshakes, on sockets that still block */

static void write_all(int fd, const void *data, size_t length)
{
    for (const char *at = data; length;) {
        ssize_t done = write(fd, at, length);
        if (done < 0 && errno != EINTR)
            fail_errno("handshake");
        if (done > 0) {
            at += done;
            length -= (size_t)done;
        }
    }
}

static void read_all(int fd, void *data, size_t length)
{
    for (char *at = data; length;) {
        ssize_t done = read(fd, at, length);
        if (done == 0)
            fail("the other end closed the connection in the handshake");
        if (done < 0 && errno != EINTR)
            fail_errno("handshake");
        if (done > 0) {
            at += done;
            length -= (size_t)done;
        }
    }
}

/* The client's part of VMN3T (vpnkit.md 1.1).  Fills in the MAC that it was told; returns the MTU. */
static unsigned vmnet_handshake(int fd, const char *uuid, const char *ip, unsigned char *mac)
{
    unsigned char init[49] = "VMN3T\x16\0\0", answer[49], command[41] = {1}, response[258];
    struct timeval limit = {.tv_sec = HANDSHAKE_SECONDS};
    struct in_addr wanted;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    memset(init + 9, '0', 40);
    write_all(fd, init, sizeof init);
    read_all(fd, answer, sizeof answer);
    if (memcmp(answer, init, 9) != 0)
        fail("the other end does not speak VMN3T version 22");
    if (strcmp(uuid, "-") != 0) {
        if (strlen(uuid) != 36)
            fail("%s is no UUID", uuid);
        memcpy(command + 1, uuid, 36);
    }
    if (ip) {
        if (inet_pton(AF_INET, ip, &wanted) != 1)
            fail("%s is no IPv4 address", ip);
        uint32_t number = ntohl(wanted.s_addr);
        command[0] = 8;
        for (int i = 0; i < 4; i++)
            command[37 + i] = (unsigned char)(number >> 8 * i);
    }
    write_all(fd, command, sizeof command);
    read_all(fd, response, sizeof response);
    if (response[0] == 2)
        fail("refused: %.*s", response[1], (const char *)response + 2);
    if (response[0] != 1)
        fail("a response of type %d", response[0]);
    memcpy(mac, response + 5, 6);
    return response[1] | (unsigned)response[2] << 8;
}

/* Frames */

static size_t prefix_size(enum framing framing)
{
    return framing == LENGTH32 ? 4 : 2;
}

static size_t longest(enum framing framing)
{
    return framing == LENGTH16 ? UINT16_MAX : MAX_FRAME;
}

static void put_prefix(enum framing framing, char *at, size_t length)
{
    if (framing == LENGTH32) {
        uint32_t prefix = htonl((uint32_t)length);
        memcpy(at, &prefix, 4);
    } else {
        at[0] = (char)(length & 255);
        at[1] = (char)(length >> 8);
    }
}

static size_t get_prefix(enum framing framing, const char *at)
{
    const unsigned char *octets = (const unsigned char *)at;
    uint32_t prefix;
    if (framing == LENGTH16)
        return octets[0] | (size_t)octets[1] << 8;
    memcpy(&prefix, at, 4);
    return ntohl(prefix);
}

/* What waits in to_link, from `start` to `end`. */
struct waiting {
    size_t start, end;
};

/* Read a burst of the device, with prefixes. */
static void gather(struct tap tap, enum framing framing, struct waiting *waiting)
{
    size_t prefix = prefix_size(framing), length;
    while (waiting->end < BURST && (length = read_frame(tap, to_link + waiting->end + prefix)) > 0) {
        if (length > longest(framing))
            continue; /* the link cannot say it */
        put_prefix(framing, to_link + waiting->end, length);
        waiting->end += prefix + length;
    }
}

/* Returns false when the link has ended.  So do all of these. */
static bool send_stream(const struct link *link, struct waiting *waiting)
{
    while (waiting->start < waiting->end) {
        ssize_t length = write(link->out, to_link + waiting->start, waiting->end - waiting->start);
        if (length < 0)
            return would_wait();
        waiting->start += (size_t)length;
    }
    waiting->start = waiting->end = 0;
    return true;
}

static bool receive_stream(const struct link *link, struct tap tap, size_t *have)
{
    size_t prefix = prefix_size(link->framing), at = 0;
    ssize_t length = read(link->in, from_link + *have, BUFFER - *have);
    if (length <= 0)
        return length < 0 && would_wait();
    *have += (size_t)length;
    while (*have - at >= prefix) {
        size_t frame = get_prefix(link->framing, from_link + at);
        if (frame > MAX_FRAME)
            fail("a frame of %zu octets", frame);
        if (*have - at - prefix < frame)
            break;
        write_frame(tap, from_link + at + prefix, frame);
        at += prefix + frame;
    }
    memmove(from_link, from_link + at, *have - at);
    *have -= at;
    return true;
}

static bool send_packets(const struct link *link, struct tap tap, struct waiting *waiting)
{
    const struct sockaddr *to = link->to_length ? (const struct sockaddr *)&link->to : NULL;
    for (int i = 0; i < BURST_PACKETS; i++) {
        if (!waiting->end && !(waiting->end = read_frame(tap, to_link)))
            break;
        if (sendto(link->out, to_link, waiting->end, MSG_NOSIGNAL, to, link->to_length) < 0) {
            if (would_wait())
                break;
            if (!to && errno != EMSGSIZE)
                return false;
            /* nobody is at that address now, or the frame is too long for the socket: it is lost */
        }
        waiting->end = 0;
    }
    return true;
}

static bool receive_packets(const struct link *link, struct tap tap)
{
    for (int i = 0; i < BURST_PACKETS; i++) {
        ssize_t length = recv(link->in, from_link, BUFFER, 0);
        if (length < 0)
            return would_wait();
        if (length == 0 && link->has_end)
            return false;
        if (length >= ETHERNET_HEADER)
            write_frame(tap, from_link, (size_t)length);
    }
    return true;
}

/* Whether standard input, which is only there to end us, has ended. */
static bool input_ended(void)
{
    char ignored[64];
    ssize_t length = read(STDIN_FILENO, ignored, sizeof ignored);
    return length == 0 || (length < 0 && !would_wait());
}

static enum ending serve(const struct link *link, struct tap tap)
{
    struct waiting waiting = {0, 0};
    size_t have = 0;
    bool packets = link->framing == PACKETS;
    for (;;) {
        bool more = waiting.end > 0, tells = link->to_length == 0;
        struct pollfd ready[4] = {
            {.fd = more ? -1 : tap.fd, .events = POLLIN},
            {.fd = link->in, .events = POLLIN},
            {.fd = more && !tells ? -1 : link->out, .events = more ? POLLOUT : 0},
            {.fd = link->in == STDIN_FILENO ? -1 : STDIN_FILENO, .events = POLLIN},
        };
        if (poll(ready, 4, more && !tells ? MILLISECOND : -1) < 0) {
            if (errno == EINTR)
                continue;
            fail_errno("poll");
        }
        if (ready[3].revents && input_ended())
            return INPUT_ENDED;
        if (link->in != link->out && ready[2].revents & POLLERR)
            return LINK_ENDED; /* nobody reads the pipe */
        if (!more && ready[0].revents && !packets)
            gather(tap, link->framing, &waiting);
        if (packets ? !send_packets(link, tap, &waiting) : !send_stream(link, &waiting))
            return LINK_ENDED;
        if (ready[1].revents && (packets ? !receive_packets(link, tap) : !receive_stream(link, tap, &have)))
            return LINK_ENDED;
    }
}

static void serve_listener(int listener, struct tap tap)
{
    set_nonblocking(listener);
    for (enum ending ending = LINK_ENDED; ending == LINK_ENDED;) {
        struct pollfd ready[2] = {{.fd = listener, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};
        if (poll(ready, 2, -1) < 0) {
            if (errno == EINTR)
                continue;
            fail_errno("poll");
        }
        if (ready[1].revents && input_ended())
            return;
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (would_wait() || errno == ECONNABORTED)
                continue;
            fail_errno("accept");
        }
        set_carrier(tap, 1);
        ending = serve(&(struct link){.in = fd, .out = fd, .framing = LENGTH32}, tap);
        set_carrier(tap, 0);
        close(fd);
    }
}

__attribute__((noreturn)) static void usage(void)
{
    fputs("usage: link_peer [-k] [-n NETNS] qemu|qemu-listen|vmnet|connect|vfkit|dgram|bess|stdio TAP ADDRESS...\n",
          stderr);
    exit(2);
}

int main(int argc, char **argv)
{
    bool krun = false;
    const char *netns = NULL;
    for (int option; (option = getopt(argc, argv, "+kn:")) != -1;) {
        if (option == 'k')
            krun = true;
        else if (option == 'n')
            netns = optarg;
        else
            usage();
    }
    argc -= optind;
    argv += optind;
    if (argc < 2)
        usage();
    signal(SIGPIPE, SIG_IGN);

    const char *kind = argv[0];
    const char *first = argc > 2 ? argv[2] : NULL, *second = argc > 3 ? argv[3] : NULL;
    bool listening = strcmp(kind, "qemu-listen") == 0;
    bool datagrams = strcmp(kind, "vfkit") == 0 || strcmp(kind, "dgram") == 0;
    struct link link = {.framing = LENGTH16};
    unsigned char mac[6];
    unsigned mtu = 0;
    bool told = false;
    int fd = -1;
    if (strcmp(kind, "stdio") != 0 && (!first || (datagrams && !second)))
        usage();
    if (strcmp(kind, "qemu") == 0 || listening) {
        fd = open_stream(first, listening);
        link.framing = LENGTH32;
    } else if (strcmp(kind, "vmnet") == 0) {
        fd = open_stream(first, false);
        mtu = vmnet_handshake(fd, second ? second : "-", argc > 4 ? argv[4] : NULL, mac);
        told = true;
    } else if (strcmp(kind, "connect") == 0) {
        static const char request[] = "POST /connect HTTP/1.1\r\nHost: \r\nContent-Length: 0\r\n\r\n";
        fd = open_stream(first, false);
        write_all(fd, request, sizeof request - 1);
    } else if (datagrams) {
        fd = unix_socket(SOCK_DGRAM);
        bind_unix(fd, first);
        link.framing = PACKETS;
        if (strcmp(kind, "vfkit") == 0) {
            connect_unix(fd, second);
            if (argc > 4)
                write_all(fd, argv[4], strlen(argv[4]));
        } else {
            link.to = unix_address(second);
            link.to_length = sizeof link.to;
        }
    } else if (strcmp(kind, "bess") == 0) {
        fd = unix_socket(SOCK_SEQPACKET);
        connect_unix(fd, first);
        link.framing = PACKETS;
        link.has_end = true;
    } else if (strcmp(kind, "stdio") == 0) {
        link.in = STDIN_FILENO;
        link.out = STDOUT_FILENO;
        set_nonblocking(link.in);
        set_nonblocking(link.out);
    } else {
        usage();
    }
    if (krun && (link.framing == LENGTH16 || listening))
        fail("%s is no link of libkrun", kind);
    if (fd >= 0) {
        link.in = link.out = fd;
        set_nonblocking(fd);
        if (krun)
            enlarge(fd, link.framing == PACKETS ? PACKET_BUFFER : STREAM_BUFFER);
    }

    if (netns) {
        int there = open(netns, O_RDONLY | O_CLOEXEC);
        if (there < 0 || setns(there, CLONE_NEWNET) < 0)
            fail_errno(netns);
        close(there);
    }
    struct tap tap = open_tap(argv[1], krun);
    if (told)
        set_mac(tap, mac);
    else
        get_mac(tap, mac);
    if (listening)
        set_carrier(tap, 0);
    fprintf(stderr, "ready mac=%02x:%02x:%02x:%02x:%02x:%02x mtu=%u\n", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5],
            mtu);
    if (listening)
        serve_listener(fd, tap);
    else
        serve(&link, tap);
    return 0;
}
