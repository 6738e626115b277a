"""Make `data/starter` from free synthetic voices: `python data/make_starter.py [folder]`.

Made on Debian 12 with flite 2.2-5, festival 1:2.5.0-9 (festvox-kallpc16k 2.4-1, festvox-kdlpc16k 1.4.0-6.1) and espeak-ng 1.51+dfsg-10+deb12u2,
soundfile 0.14 and soxr 1.1: the same versions make the same bytes. Only remaking needs the synthesizers; see `data/README.md`."""
import csv, shutil, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np, soundfile as sf, soxr

n_takes,n_utts = 5,12
salt = 3 # Chosen so that every word and letter is heard in training
words = 'zero one two three four five six seven eight nine'.split()

@dataclass
class Voice:
    "One speaker: `warp`>1 shortens the vocal tract and raises the pitch, as if a smaller person spoke"
    name:str     # Without underscores: it is a part of file names
    engine:str   # 'flite', 'festival' or 'espeak'
    arg:str      # The engine's own name of the voice
    split:str    # Whole voices are held out as 'test'
    warp:float=1 # Resampling factor

table = """awb flite awb train · rms flite rms train · slt flite slt train · kal festival kal_diphone train
june flite slt train 1.13 · bruno flite rms train 0.92 · pip flite awb train 1.2 · belinda espeak en-us+belinda train
steph espeak en-gb+steph train · linda espeak en-029+linda train · mike espeak en-us-nyc+Mike train · hugo espeak en-gb-x-rp+m3 train
ross espeak en-gb-scotland+m7 train · max espeak en-us+max train
ked festival ked_diphone test · annie espeak en-us+Annie test · fay espeak en-gb-scotland+f4 test · gene espeak en-us+Gene test"""
voices = [Voice(*row.split()) for line in table.splitlines() for row in line.split('·')]
for v in voices: v.warp = float(v.warp)

def rng_for(*key): return np.random.default_rng(crc32('/'.join(map(str, key)).encode()))

def flite(text, arg, rate, fn): return ['flite', '-voice', arg, '--setf', f'duration_stretch={1/rate:.3f}', '-t', text, '-o', fn]

def festival(text, arg, rate, fn):
    return ['text2wave', '-eval', f'(voice_{arg})', '-eval', f"(Parameter.set 'Duration_Stretch {1/rate:.3f})", '-o', fn]

def espeak(text, arg, rate, fn):
    "espeak would read a lone A as the article and Z as the accent has it"
    said = ' '.join({'A': "[['eI]]", 'Z':'zee'}.get(w, w) for w in text.split())
    return ['espeak-ng', '-v', arg, '-s', str(round(160*rate)), '-w', fn, said]

def synth(voice, text, rate, sr):
    "`text` spoken by `voice` as floats at `sr`"
    with tempfile.TemporaryDirectory() as d:
        fn = f'{d}/x.wav'
        cmd = globals()[voice.engine](text, voice.arg, rate/voice.warp, fn)
        subprocess.run(cmd, input=text.encode(), check=True, capture_output=True)
        wav,sr_in = sf.read(fn)
    return soxr.resample(wav, sr_in*voice.warp, sr, quality='VHQ')

def trim(wav, sr, top_db=38., pad=0.015):
    "Cut what is `top_db` below the loudest 10 ms at both ends, keeping `pad` seconds"
    n = sr//100
    db = 20*np.log10(np.sqrt((wav[:len(wav)//n*n].reshape(-1,n)**2).mean(1)) + 1e-9)
    loud,p = np.flatnonzero(db > db.max()-top_db)*n,int(pad*sr)
    return wav[max(0, loud[0]-p):loud[-1]+n+p]

def level(wav, rms_db, noise_db, rng):
    "Set the level in dB re full scale, add faint room noise, leave headroom"
    wav = wav*10**(rms_db/20)/np.sqrt((wav**2).mean())
    wav = wav*min(1, .95/np.abs(wav).max()) + rng.normal(0, 10**(noise_db/20), len(wav))
    return wav.clip(-1, 1)

def say(voice, text, sr, noise_db, key):
    "One take: rate, pitch and level differ a little from take to take, repeatably by `key`"
    rng = rng_for(voice.name, *key)
    rate,bend,rms_db = rng.uniform(.88, 1.15),rng.uniform(.965, 1.035),rng.uniform(-26, -16)
    take = replace(voice, warp=voice.warp*bend)
    return level(trim(synth(take, text, rate, sr), sr), rms_db, noise_db, rng)

commands = 'YES NO GO STOP HELP ENTER ERASE RUBOUT REPEAT START'.split()
names = '''ADAM ALICE BOSTON BEN CHLOE DENVER DIANA ELLA FELIX FRANK GRACE HENRY IVAN IVY JACK JULIA KATE KEVIN LEO LUCY MARK MAYA NORA OSCAR
    PAUL PERTH QUINN ROSE ROME RUTH SAM SOFIA TOM VERA VICTOR WILL XAVIER YORK ZOE ZURICH'''.split()
ones = 'ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE'.split()
teens = 'TEN ELEVEN TWELVE THIRTEEN FOURTEEN FIFTEEN SIXTEEN SEVENTEEN EIGHTEEN NINETEEN'.split()
tens = 'TWENTY THIRTY FORTY FIFTY SIXTY SEVENTY EIGHTY NINETY'.split()
months = 'JANUARY FEBRUARY MARCH APRIL MAY JUNE JULY AUGUST SEPTEMBER OCTOBER NOVEMBER DECEMBER'.split()
letters = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'

def day(rng):
    "The day of a month in words"
    n = int(rng.integers(1, 31))
    if n<10: return ones[n]
    if n<20: return teens[n-10]
    return ' '.join([tens[n//10-2]] + ([ones[n%10]] if n%10 else []))

def join(rng, pool, n): return ' '.join(rng.choice(list(pool), n))
def year(rng): return f'{rng.choice(["NINETEEN", "EIGHTEEN"])} {rng.choice(tens)} {rng.choice(ones[1:])}'
def order(rng): return rng.choice(['ENTER', 'ERASE', 'RUBOUT', 'GO', 'REPEAT'])

def transcripts(voice, i):
    "The `n_utts` texts of voice number `i`: commands, spelled names, letters, digit strings, dates, orders"
    rng = rng_for('text', salt, voice.name)
    def deal(pool, k=0): return pool[(i+k) % len(pool)]
    return [deal(commands), deal(commands, 5), ' '.join(deal(names)), ' '.join(deal(names, 20)), join(rng, letters, 3), join(rng, letters, 4),
        join(rng, ones, 3), join(rng, ones, 5), f'{deal(months)} {day(rng)}', f'{deal(months, 6)} {year(rng)}',
        f'{order(rng)} {deal(teens)}', f'{order(rng)} {join(rng, letters, 2)} {deal(tens)} {rng.choice(ones[1:])}']

def save(fn, wav, sr):
    fn.parent.mkdir(parents=True, exist_ok=True)
    sf.write(fn, wav, sr, subtype='PCM_16')

def digit(out, voice, d, take):
    save(out/f'digits/recordings/{d}_{voice.name}_{take}.wav', say(voice, words[d], 8000, -58, ('digit', d, take)), 8000)

def utterance(out, row, voice): save(out/'speech'/row['file'], say(voice, row['text'], 16000, -78, ('speech', row['file'])), 16000)

def write_csv(fn, rows):
    with open(fn, 'w', newline='') as f:
        w = csv.DictWriter(f, rows[0], lineterminator='\n')
        w.writeheader()
        w.writerows(rows)

here = Path(__file__).parent/'starter'

def main(out=here):
    "Write digits, utterances, `transcripts.csv`, `voices.csv` and the licence into `out`"
    by_name = {v.name:v for v in voices}
    rows = [dict(file=f'{v.name}-{j:02}.flac', text=t, speaker=v.name, split=v.split)
        for i,v in enumerate(voices) for j,t in enumerate(transcripts(v, i))]
    with ThreadPoolExecutor(4) as ex:
        jobs = [ex.submit(digit, out, v, d, k) for v in voices for d in range(10) for k in range(n_takes)]
        jobs += [ex.submit(utterance, out, r, by_name[r['speaker']]) for r in rows]
        for j in jobs: j.result()
    write_csv(out/'speech/transcripts.csv', rows)
    write_csv(out/'voices.csv', [vars(v) for v in voices])
    if not (out/'LICENSE').exists(): shutil.copy(here/'LICENSE', out)

if __name__=='__main__': main(*map(Path, sys.argv[1:]))
