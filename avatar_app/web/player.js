/* <live-video src="/media/jobs/ID">: a video that plays while it is made. Finished pieces are appended to a media source
   as they come, the sound is there from the start; a video that is whole is played as any other. Subtitles of the
   user's are a track of it all the while. */
(() => {
    const ASK_EVERY = 1000; // ms
    const done = (target, event) => new Promise((resolve) => target.addEventListener(event, resolve, { once: true }));
    const codecOf = (bytes) => {
        for (let i = 4; i < bytes.length - 8; i++)
            if (bytes[i] === 0x61 && bytes[i + 1] === 0x76 && bytes[i + 2] === 0x63 && bytes[i + 3] === 0x43)
                return 'avc1.' + [5, 6, 7].map((k) => bytes[i + k].toString(16).padStart(2, '0')).join('');
        return 'avc1.64001f';
    };

    class LiveVideo extends HTMLElement {
        connectedCallback() {
            if (this.video) return;
            this.base = this.getAttribute('src');
            this.video = Object.assign(document.createElement('video'), {
                playsInline: true, poster: this.getAttribute('poster') || '',
            });
            this.hint = Object.assign(document.createElement('p'), { className: 'hint', hidden: true });
            if (this.dataset.subtitles)
                this.video.append(Object.assign(document.createElement('track'), {
                    kind: 'subtitles', label: this.dataset.subtitles, src: `${this.base}/subtitles.vtt`, default: true,
                }));
            this.append(this.video, this.hint);
            this.video.addEventListener('waiting', () => { if (!this.whole) this.say('stalled'); });
            this.video.addEventListener('playing', () => this.say(''));
            this.run();
        }

        say(key) {
            this.hint.hidden = !key;
            this.hint.textContent = key ? this.dataset[key] : '';
        }

        async ask() {
            while (this.isConnected) {
                try {
                    const answer = await fetch(`${this.base}/live.json`, { cache: 'no-store' });
                    if (answer.ok) {
                        if (this.offline) this.say('');
                        this.offline = false;
                        return await answer.json();
                    }
                    if (answer.status === 404 || answer.status === 401) return { state: 'gone', pieces: 0 };
                } catch (error) { /* the network is away: ask again */ }
                this.offline = true;
                this.say('offline');
                await new Promise((resolve) => setTimeout(resolve, 2 * ASK_EVERY));
            }
            return { state: 'gone', pieces: 0 };
        }

        async load(name) {
            const answer = await fetch(`${this.base}/live/${name}`);
            if (!answer.ok) throw new Error(answer.statusText);
            return new Uint8Array(await answer.arrayBuffer());
        }

        async push(buffer, bytes) {
            buffer.appendBuffer(bytes);
            await done(buffer, 'updateend');
        }

        async run() {
            let facts = await this.ask();
            const Source = window.ManagedMediaSource || window.MediaSource;
            while (facts.state === 'queued' || facts.state === 'running') {
                if (facts.pieces > 0 && Source) {
                    try { return await this.playWhileMade(Source, facts); } catch (error) { console.warn(error); }
                    break;
                }
                await new Promise((resolve) => setTimeout(resolve, ASK_EVERY));
                facts = await this.ask();
            }
            while (facts.state === 'queued' || facts.state === 'running') {
                await new Promise((resolve) => setTimeout(resolve, ASK_EVERY));
                facts = await this.ask();
            }
            if (facts.state === 'done') this.playWhole();
        }

        playWhole() {
            this.whole = true;
            this.say('');
            this.video.controls = true;
            this.video.removeAttribute('poster');
            this.video.preload = 'auto';
            this.video.src = `${this.base}/video.mp4`;
        }

        async playWhileMade(Source, facts) {
            const source = new Source();
            this.video.disableRemotePlayback = true;
            this.video.src = URL.createObjectURL(source);
            await done(source, 'sourceopen');
            source.duration = facts.seconds;
            this.video.controls = true;
            const sound = facts.sound ? source.addSourceBuffer('audio/mp4; codecs="mp4a.40.2"') : null;
            let picture = null;
            let next = 0;
            for (;;) {
                while (next < facts.pieces && this.isConnected) {
                    const bytes = await this.load(`${next}.mp4`);
                    if (!picture) {
                        picture = source.addSourceBuffer(`video/mp4; codecs="${codecOf(bytes)}"`);
                        picture.mode = 'sequence';
                    }
                    await this.push(picture, bytes);
                    if (next++ === 0) {
                        if (sound) await this.push(sound, await this.load('sound.mp4'));
                        this.video.play().catch(() => {});
                    }
                    this.dataset.pieces = next;
                }
                if (!this.isConnected) return;
                if (facts.state !== 'queued' && facts.state !== 'running') break;
                await new Promise((resolve) => setTimeout(resolve, ASK_EVERY));
                facts = await this.ask();
            }
            this.whole = true;
            this.say('');
            if (source.readyState === 'open') source.endOfStream();
            if (facts.state === 'done' && this.video.paused) this.playWhole();
            else if (facts.state === 'done') this.video.addEventListener('ended', () => this.playWhole(), { once: true });
        }
    }
    /* Before and after: the slider lies over both pictures and moves the border between them. */
    document.addEventListener('input', (event) => {
        const figure = event.target.closest && event.target.closest('.compare');
        if (figure) figure.style.setProperty('--at', `${event.target.value}%`);
    });
    if (!customElements.get('live-video')) customElements.define('live-video', LiveVideo);
})();
