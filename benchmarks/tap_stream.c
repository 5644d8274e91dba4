/* Joins a new TAP device to a unix stream socket that speaks QEMU's framing (a 32-bit big-endian length in front of
 * every Ethernet frame): a guest that is no machine, for measuring what listens there.
 *
 *     tap_stream NAME SOCKET
 *
 * The device is made in this network namespace, without offloads.  It ends when the stream does.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { MAX_FRAME = 65549, BUFFER = 1 << 20 };

static char to_stream[BUFFER], from_stream[BUFFER];

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int open_tap(const char *name)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request) < 0)
        fail("tap");
    return fd;
}

static int connect_stream(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0), size = 4 << 20;
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail(path);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: tap_stream NAME SOCKET\n");
        return 2;
    }
    int tap = open_tap(argv[1]), stream = connect_stream(argv[2]);
    size_t waiting = 0, sent = 0; /* octets in to_stream, and how many of them have left */
    size_t have = 0;              /* octets in from_stream */
    for (;;) {
        struct pollfd ready[2] = {
            {.fd = waiting ? -1 : tap, .events = POLLIN},
            {.fd = stream, .events = POLLIN | (waiting ? POLLOUT : 0)},
        };
        if (poll(ready, 2, -1) < 0 && errno != EINTR)
            fail("poll");
        if (!waiting) {
            while (waiting + 4 + MAX_FRAME <= BUFFER / 4) {
                ssize_t length = read(tap, to_stream + waiting + 4, MAX_FRAME);
                if (length <= 0)
                    break;
                uint32_t prefix = htonl((uint32_t)length);
                memcpy(to_stream + waiting, &prefix, 4);
                waiting += 4 + (size_t)length;
            }
        }
        while (sent < waiting) {
            ssize_t length = send(stream, to_stream + sent, waiting - sent, MSG_NOSIGNAL);
            if (length < 0 && errno == EAGAIN)
                break;
            if (length < 0)
                return 0;
            sent += (size_t)length;
        }
        if (sent == waiting)
            sent = waiting = 0;
        ssize_t length = recv(stream, from_stream + have, BUFFER - have, 0);
        if (length == 0 || (length < 0 && errno != EAGAIN))
            return 0;
        if (length > 0)
            have += (size_t)length;
        size_t at = 0;
        while (have - at >= 4) {
            uint32_t prefix;
            memcpy(&prefix, from_stream + at, 4);
            prefix = ntohl(prefix);
            if (prefix > MAX_FRAME) {
                fprintf(stderr, "tap_stream: a frame of %u octets\n", prefix);
                return 1;
            }
            if (have - at - 4 < prefix)
                break;
            if (write(tap, from_stream + at + 4, prefix) < 0 && errno != EIO && errno != EINVAL && errno != EAGAIN)
                fail("tap write");
            at += 4 + prefix;
        }
        memmove(from_stream, from_stream + at, have - at);
        have -= at;
    }
}
