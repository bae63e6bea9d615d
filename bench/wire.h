/* The code that load.c and limit.c share: sockets with and without TLS, and packs of messages. */
#ifndef WIRE_H
#define WIRE_H

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { AGAIN = -1, BROKEN = -2 };

/* A socket that does not block.  Without TLS, ssl is NULL. */
struct link {
    int fd;
    SSL *ssl;
};

/* Messages in the form in which RETR sends them: with CRLF as line ends, dot-stuffing, and the
   final dot.  The first message has the number 0.  Message n begins at data[at[n]], and ends before
   data[at[n + 1]]. */
struct pack {
    const char *data;
    const uint64_t *at;
    size_t count;
};

static inline const void *mapFile(const char *path, size_t *size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) < 0) {
        perror(path);
        exit(2);
    }
    *size = status.st_size;
    void *data = mmap(NULL, status.st_size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (data == MAP_FAILED) {
        perror(path);
        exit(2);
    }
    close(fd);
    return data;
}

/* Open the file PATH with the messages, and the file PATH.at with the offsets, which are 64-bit
   numbers in the byte order of this machine. */
static inline struct pack openPack(const char *path) {
    char name[4096];
    size_t size;
    struct pack pack;
    pack.data = mapFile(path, &size);
    snprintf(name, sizeof name, "%s.at", path);
    pack.at = mapFile(name, &size);
    pack.count = size / sizeof *pack.at - 1;
    return pack;
}

static inline void nonBlocking(int fd) {
    int one = 1;
    fcntl(fd, F_SETFL, O_NONBLOCK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static inline ssize_t sslResult(SSL *ssl, int got) {
    switch (SSL_get_error(ssl, got)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        return AGAIN;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    default:
        return BROKEN;
    }
}

/* Return the number of octets read, 0 at the end, AGAIN, or BROKEN. */
static inline ssize_t linkRead(struct link *link, char *buffer, size_t size) {
    if (link->ssl) {
        ERR_clear_error();
        int got = SSL_read(link->ssl, buffer, size);
        return got > 0 ? got : sslResult(link->ssl, got);
    }
    ssize_t got = recv(link->fd, buffer, size, 0);
    return got >= 0 ? got : errno == EAGAIN || errno == EINTR ? AGAIN : BROKEN;
}

/* Return the number of octets written, which may be fewer than all, or AGAIN, or BROKEN. */
static inline ssize_t linkWrite(struct link *link, const char *data, size_t size) {
    if (link->ssl) {
        ERR_clear_error();
        int sent = SSL_write(link->ssl, data, size > 1 << 20 ? 1 << 20 : size);
        return sent > 0 ? sent : sslResult(link->ssl, sent);
    }
    ssize_t sent = send(link->fd, data, size, MSG_NOSIGNAL);
    return sent >= 0 ? sent : errno == EAGAIN || errno == EINTR ? AGAIN : BROKEN;
}

static inline void linkClose(struct link *link) {
    if (link->ssl) {
        ERR_clear_error();
        SSL_shutdown(link->ssl);
        SSL_free(link->ssl);
        link->ssl = NULL;
    }
    close(link->fd);
    link->fd = -1;
}

#endif
